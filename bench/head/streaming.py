"""Least squares over all of the text: two sums, one small solve, and a fitted temperature."""

import time

from torch import Tensor

from fusedstep.lm_head import LeastSquares

from . import temperature
from .data import Data, Hidden, Windows, evaluate
from .progress import Stage
from .settings import SCALE, Settings


def sums_of(part: Windows, model: Hidden, settings: Settings, stage: Stage) -> LeastSquares:
    """The sums over all tokens of `part`; a step of the stage is a chunk of windows."""
    sums = LeastSquares(settings.width, settings.vocabulary, scale=SCALE)
    for some in part.chunks(settings.chunk):
        sums.update(*some.hidden(model))
        stage.step()
    return sums


def steps_of(part: Windows, settings: Settings) -> int:
    return -(-len(part) // settings.chunk)


def fit(data: Data, model: Hidden, fresh: Tensor, settings: Settings, stage: Stage) -> dict:
    """The least-squares head of the text, with its losses there and on held-out text.

    `solve_seconds`: hidden states, sums and the solve; `seconds`: the temperature's fit too,
    on one chunk of windows from all over the training text.
    """
    start = time.perf_counter()
    sums = sums_of(data.corpus, model, settings, stage)
    weight = sums.solve()
    solved = time.perf_counter()
    head = weight.float()
    fitted = temperature.fit(data.corpus.spread(settings.chunk), model, head, settings.chunk)
    end = time.perf_counter()
    held_out = sums_of(data.held_out, model, settings, stage)
    return {
        "tokens": sums.count,
        "mse_before": float(sums.mse(fresh)),
        "mse": float(sums.mse(weight)),
        "held_out_mse_before": float(held_out.mse(fresh)),
        "held_out_mse": float(held_out.mse(weight)),
        "held_out_tokens": held_out.count,
        "temperature_factor": fitted.factor,
        "temperature_passes": fitted.passes,
        "held_out_loss": evaluate(data.held_out, model, fitted.factor * head, settings.chunk),
        "solve_seconds": solved - start,
        "seconds": end - start,
    }
