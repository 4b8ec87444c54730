"""Hessian-vector products of a loss, by double backward or by differences of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fusedstep.checks import refuse

Loss = Callable[[], Tensor]
Losses = Loss | Sequence[Loss]

KINDS = ("autograd", "differences")


class HessianProducts:
    """v -> H v for vectors [n] in float64, H the Hessian of the mean of some losses.

    Every loss is computed with the same random numbers each time, so that dropout leaves H a
    symmetric matrix; afterwards the generators are as they were. With one loss, its graph is kept
    for all products; with several, each product computes one graph after the other.
    """

    def __init__(self, function: str, losses: list[Loss], params: list[Tensor], kind: str) -> None:
        self.function, self.losses, self.params, self.kind = function, losses, params, kind
        self.size = sum(p.numel() for p in params)
        self.kept: list[Tensor] | None = None

    def __call__(self, vector: Tensor) -> Tensor:
        """The product, in float64."""
        product = self._by_autograd if self.kind == "autograd" else self._by_differences
        result = product(vector)
        if not bool(result.isfinite().all()):
            refuse(self.function, "loss_fn", "have finite second derivatives", "NaN or infinity")
        return result

    def flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Tensors like the parameters as one vector in float64; None is zeros."""
        parts = [
            torch.zeros(p.numel(), dtype=torch.float64, device=p.device)
            if tensor is None
            else tensor.detach().reshape(-1).to(torch.float64)
            for tensor, p in zip(tensors, self.params, strict=True)
        ]
        return torch.cat(parts)

    def unflat(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector in the shapes of the parameters, in float64."""
        parts = vector.split([p.numel() for p in self.params])
        return [part.view(p.shape) for part, p in zip(parts, self.params, strict=True)]

    def _by_autograd(self, vector: Tensor) -> Tensor:
        parts = [part.to(p.dtype) for part, p in zip(self.unflat(vector), self.params, strict=True)]
        total = torch.zeros_like(vector)
        for i in range(len(self.losses)):
            grads = self.kept or self._gradients(i, create_graph=True)
            if len(self.losses) == 1:
                self.kept = grads
            total += self.flat(self._derivatives(grads, parts))
        return total / len(self.losses)

    def _derivatives(self, grads: Sequence[Tensor | None], parts: list[Tensor]) -> Any:
        """The gradients of the inner product of `grads` with `parts`."""
        pairs = [
            (grad, part)
            for grad, part in zip(grads, parts, strict=True)
            if grad is not None and grad.requires_grad  # else it is the same everywhere
        ]
        if not pairs:
            return [None] * len(self.params)
        outputs, along = zip(*pairs, strict=True)
        try:
            return torch.autograd.grad(
                outputs, self.params, along, retain_graph=self.kept is not None, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.function}: products must be 'differences' for a loss without second "
                f"derivatives, got 'autograd': {error}"
            ) from error

    def _by_differences(self, vector: Tensor) -> Tensor:
        """(g(w + h v) - g(w - h v)) / 2 h; the parameters are written to, and then restored.

        The error is eps |g| / h from rounding and h^2 / 6 times fourth derivatives; for steps of
        unit length h = eps^(1/3) balances them. Written through `.data`, the parameters keep their
        version: a graph recorded before still runs backward.
        """
        step = max(torch.finfo(p.dtype).eps for p in self.params) ** (1 / 3) / float(vector.norm())
        before = [p.detach().clone() for p in self.params]
        parts = self.unflat(vector)
        grads: list[Tensor] = []
        try:
            for h in (step, -step):
                for p, origin, part in zip(self.params, before, parts, strict=True):
                    p.data.copy_(origin + h * part)
                grads.append(self._gradient())
        finally:
            for p, origin in zip(self.params, before, strict=True):
                p.data.copy_(origin)
        forward, backward = grads
        return (forward - backward) / float(2 * step)

    def _gradient(self) -> Tensor:
        """The gradient of the mean of the losses, in float64."""
        total = self.flat(self._gradients(0))
        for i in range(1, len(self.losses)):
            total += self.flat(self._gradients(i))
        return total / len(self.losses)

    def _gradients(self, i: int, create_graph: bool = False) -> Any:
        name = "loss_fn" if len(self.losses) == 1 else f"loss_fn[{i}]"
        with torch.enable_grad(), _same_random_numbers(self.params[0].device):
            loss = self.losses[i]()
            _require_loss(self.function, name, loss)
            grads = torch.autograd.grad(
                loss.reshape(()), self.params, create_graph=create_graph, allow_unused=True
            )
        if all(grad is None for grad in grads):
            refuse(self.function, name, "depend on params", "a loss of other tensors")
        return grads


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Context manager: the generators are afterwards as they were before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _require_loss(function: str, name: str, loss: Any) -> None:
    if not isinstance(loss, Tensor):
        refuse(function, f"{name}()", "be a tensor", type(loss).__name__, TypeError)
    if loss.numel() != 1 or not loss.is_floating_point():
        got = f"{loss.dtype} of shape {tuple(loss.shape)}"
        refuse(function, f"{name}()", "be a floating-point scalar", got)
    if not loss.requires_grad:
        refuse(function, f"{name}()", "depend on params", "a loss without gradient")
    if not math.isfinite(loss.item()):
        refuse(function, f"{name}()", "be finite", loss.item())


def make_products(function: str, loss_fn: Any, params: Any, kind: Any) -> HessianProducts:
    """Hessian-vector products of checked arguments."""
    losses = list(loss_fn) if isinstance(loss_fn, (list, tuple)) else [loss_fn]
    if not losses:
        refuse(function, "loss_fn", "have an entry", "none")
    for loss in losses:
        if not callable(loss):
            must = "be a function without arguments or a list of them"
            refuse(function, "loss_fn", must, type(loss).__name__, TypeError)
    if kind not in KINDS:
        refuse(function, "products", "be 'autograd' or 'differences'", repr(kind))
    return HessianProducts(function, losses, _require_params(function, params, kind), kind)


def _require_params(function: str, params: Any, kind: str) -> list[Tensor]:
    if isinstance(params, Tensor) or not hasattr(params, "__iter__"):
        refuse(function, "params", "be a list of tensors", type(params).__name__, TypeError)
    listed: list[Tensor] = list(params)
    if not listed:
        refuse(function, "params", "have an entry", "none")
    floats, seen = (torch.float32, torch.float64), set()
    for i, p in enumerate(listed):
        if not isinstance(p, Tensor):
            refuse(function, f"params[{i}]", "be a tensor", type(p).__name__, TypeError)
        if is_traceable_wrapper_subclass(p):  # DTensor: its memory is not all local
            refuse(function, f"params[{i}]", "be a plain tensor", type(p).__name__, TypeError)
        if not p.requires_grad:
            refuse(function, f"params[{i}]", "require a gradient", "requires_grad=False")
        if not p.is_floating_point():
            refuse(function, f"params[{i}]", "be floating-point", p.dtype, TypeError)
        if kind == "differences" and p.dtype not in floats:
            must = "be float32 or float64 for products='differences'"
            refuse(function, f"params[{i}]", must, p.dtype, TypeError)
        if p.device != listed[0].device:
            refuse(function, f"params[{i}]", f"be on {listed[0].device} as params[0]", p.device)
        if id(p) in seen:
            refuse(function, f"params[{i}]", "appear once", "a tensor that appears before")
        seen.add(id(p))
    return listed
