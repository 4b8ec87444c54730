"""The normal equations on a few sequences: the formula of the textbook and the pseudo-inverse."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import fusedstep

from .data import Hidden, Windows
from .settings import SCALE, Settings


def naive(X: Tensor, y: Tensor) -> Tensor:
    """The article's formula, to the letter."""
    return (torch.inverse(X.T @ X) @ X.T) @ y


FORMULAS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], torch.dtype]] = {
    "inverse(X.T @ X) @ X.T @ y, float32": (naive, torch.float32),
    "inverse(X.T @ X) @ X.T @ y, float64": (naive, torch.float64),
    "torch.pinverse(X) @ y, float32": (lambda X, y: torch.pinverse(X) @ y, torch.float32),
    "torch.linalg.pinv(X) @ y, float32": (lambda X, y: torch.linalg.pinv(X) @ y, torch.float32),
    "fusedstep.pinv(X) @ y, float32": (lambda X, y: fusedstep.pinv(X) @ y, torch.float32),
}


def compare(part: Windows, model: Hidden, fresh: Tensor, settings: Settings) -> dict:
    """Each formula's loss on the very tokens it was fitted to, or the error it ended in.

    The losses are computed in float64 from the weights that came out. `distinct` is the number of
    different rows that a linear mixer can make hidden states of: no sequence's rank exceeds it.
    """
    X, tokens = part.hidden(model)
    exact = X.double()
    target = SCALE * one_hot(tokens, settings.vocabulary).double()
    singular = torch.linalg.svdvals(exact)
    losses = {}
    for name, (formula, dtype) in FORMULAS.items():
        start = time.perf_counter()
        try:
            weight, error = formula(X.to(dtype), target.to(dtype)), None
        except RuntimeError as refused:  # torch.linalg.LinAlgError is one
            weight, error = None, str(refused).split("\n")[0]
        seconds = time.perf_counter() - start
        loss = None if weight is None else _mse(exact @ weight.double(), target)
        losses[name] = {"mse": loss, "seconds": seconds, "error": error}
    return {
        "sequences": len(part),
        "tokens": len(tokens),
        "width": X.shape[1],
        "distinct": len(part.inputs.unique()) if len(part) == 1 else None,
        "rank": int(fusedstep.pinv(X, return_info=True)[1].rank),
        "smallest_singular_value": float(singular[-1] / singular[0]),
        "before": _mse(exact @ fresh.T.double(), target),
        "losses": losses,
    }


def _mse(output: Tensor, target: Tensor) -> float | None:
    loss = float((output - target).square_().mean())
    return loss if loss < float("inf") else None
