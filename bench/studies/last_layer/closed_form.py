"""The closed form: formulas for the normal equations on a few sequences, and sums over all text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import fusedstep
from bench.studies.language_model.corpus import Windows
from bench.studies.last_layer.problem import (
    SCALE,
    Data,
    Hidden,
    Settings,
    evaluate,
    hidden_states,
)
from bench.studies.stages import Stage
from fusedstep.lm_head import LeastSquares, fit_temperature

# --- on a few sequences: the formula of the textbook and the pseudo-inverse ---


def naive(X: Tensor, y: Tensor) -> Tensor:
    """The formula of the article, as published."""
    return (torch.inverse(X.T @ X) @ X.T) @ y


FORMULAS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], torch.dtype]] = {
    "inverse(X.T @ X) @ X.T @ y, float32": (naive, torch.float32),
    "inverse(X.T @ X) @ X.T @ y, float64": (naive, torch.float64),
    "torch.pinverse(X) @ y, float32": (lambda X, y: torch.pinverse(X) @ y, torch.float32),
    "torch.linalg.pinv(X) @ y, float32": (lambda X, y: torch.linalg.pinv(X) @ y, torch.float32),
    "fusedstep.pinv(X) @ y, float32": (lambda X, y: fusedstep.pinv(X) @ y, torch.float32),
}


@dataclass(frozen=True)
class Solution:
    """What a formula's weights give, or the error it ended in; `mse` is None if not finite."""

    mse: float | None
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Formulas:
    """Every formula on the same tokens; `distinct` is the number of different ones in a sequence.

    As the mixer is linear, the rank of one sequence's hidden states cannot exceed `distinct`.
    """

    sequences: int
    tokens: int
    width: int
    distinct: int | None
    rank: int
    smallest_singular_value: float  # over the largest
    before: float | None  # mean squared error of the fresh layer
    losses: dict[str, Solution]


def compare(part: Windows, model: Hidden, fresh: Tensor, settings: Settings) -> Formulas:
    """Each formula's loss on the tokens that it was fitted to, in float64."""
    X, tokens = hidden_states(part, model)
    exact = X.double()
    target = SCALE * one_hot(tokens, settings.vocabulary).double()
    singular = torch.linalg.svdvals(exact)
    losses = {}
    for name, (formula, dtype) in FORMULAS.items():
        start = time.perf_counter()
        weight, error = None, None
        try:
            weight = formula(X.to(dtype), target.to(dtype))
        except RuntimeError as refused:  # torch.linalg.LinAlgError is one
            error = str(refused).split("\n")[0]
        seconds = time.perf_counter() - start
        loss = None if weight is None else _mse(exact @ weight.double(), target)
        losses[name] = Solution(loss, seconds, error)
    return Formulas(
        sequences=len(part),
        tokens=len(tokens),
        width=X.shape[1],
        distinct=len(part.inputs.unique()) if len(part) == 1 else None,
        rank=int(fusedstep.pinv(X, return_info=True)[1].rank),
        smallest_singular_value=float(singular[-1] / singular[0]),
        before=_mse(exact @ fresh.T.double(), target),
        losses=losses,
    )


def _mse(output: Tensor, target: Tensor) -> float | None:
    loss = float((output - target).square_().mean())
    return loss if loss < float("inf") else None


# --- on all of the text: two sums, one small solve, and a fitted temperature ---


def sums_of(part: Windows, model: Hidden, settings: Settings, stage: Stage) -> LeastSquares:
    """The sums over all tokens of `part`; a step of the stage is a chunk of windows."""
    sums = LeastSquares(settings.width, settings.vocabulary, scale=SCALE)
    for some in part.chunks(settings.chunk):
        sums.update(*hidden_states(some, model))
        stage.step()
    return sums


def steps_of(part: Windows, settings: Settings) -> int:
    return -(-len(part) // settings.chunk)


@dataclass(frozen=True)
class Fit:
    """The least-squares head of a text: mean squared errors there and held out, before and after.

    `solve_seconds`: hidden states, sums and the solve; `seconds`: with the fit of the temperature.
    """

    tokens: int
    mse_before: float
    mse: float
    held_out_mse_before: float
    held_out_mse: float
    held_out_tokens: int
    temperature_factor: float
    held_out_loss: float  # cross-entropy in nats
    solve_seconds: float
    seconds: float


def fit(data: Data, model: Hidden, fresh: Tensor, settings: Settings, stage: Stage) -> Fit:
    """Solves for all of the text; fits the temperature on one chunk of windows from all over it."""
    start = time.perf_counter()
    sums = sums_of(data.corpus, model, settings, stage)
    weight = sums.solve()
    solved = time.perf_counter()
    head = weight.float()
    hidden, tokens = hidden_states(data.corpus.spread(settings.chunk), model)
    factor = fit_temperature(hidden, tokens, head, scale=SCALE).value
    end = time.perf_counter()
    held_out = sums_of(data.held_out, model, settings, stage)
    return Fit(
        tokens=sums.count,
        mse_before=float(sums.mse(fresh)),
        mse=float(sums.mse(weight)),
        held_out_mse_before=float(held_out.mse(fresh)),
        held_out_mse=float(held_out.mse(weight)),
        held_out_tokens=held_out.count,
        temperature_factor=factor,
        held_out_loss=evaluate(data.held_out, model, factor * head, settings.chunk),
        solve_seconds=solved - start,
        seconds=end - start,
    )
