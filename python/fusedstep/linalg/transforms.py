"""Whether torch watches a computation, and what nests the transforms of torch.func."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level, maybe_get_level
from torch.autograd import Function, forward_ad

from fusedstep.fakes import runs_at_once

PLAIN = {Tensor, torch.nn.Parameter}


def unwatched(*tensors: Tensor) -> bool:
    """Whether functions may compute with the tensors' values at once, in eager mode.

    Nothing compiles, traces, maps or differentiates them in forward mode, no mode changes ops, and
    none is a fake or of another subclass. Gradients may be required.
    """
    return (
        runs_at_once()  # first: what follows cannot be compiled
        and maybe_current_level() is None
        and forward_ad._current_level < 0
        and PLAIN.issuperset(map(type, tensors))
    )


def records_gradient(*tensors: Tensor) -> bool:
    """Whether reverse mode needs what is computed from the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class BothModes(Function):
    """A Function of batched matrices whose `tangent` is its forward mode, at any depth.

    A subclass defines forward, setup_context and backward, and `tangent` in place of jvp.
    """

    @staticmethod
    def tangent(saved: tuple[Tensor, ...], *tangents: Any) -> Tensor:
        """The output's tangent from the saved tensors and the inputs' tangents."""
        raise NotImplementedError

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Tensor:
        """`tangent`, itself differentiable in the forward mode of every level outside this one.

        PyTorch turns forward mode off while it calls jvp, for all levels. Derivatives of an outer
        jvp or jacfwd would then be 0. With forward mode on, the saved tensors must not bring their
        own tangents of this level.
        """
        with forward_ad._set_fwd_grad_enabled(True):
            return cls.tangent(tuple(_primal(t) for t in ctx.saved_tensors), *tangents)

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[Tensor, int]:
        """The mapped dimension is one more of the batch."""
        first = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(inputs, in_dims, strict=True)
        ]
        most = max(t.dim() for t in first)
        aligned = (t.reshape(len(t), *[1] * (most - t.dim()), *t.shape[1:]) for t in first)
        return cls.apply(*aligned), 0


def reverse_only() -> bool:
    """Whether torch.compile traces, which supports no Function with a forward mode of its own.

    It takes tangents for 0 instead of refusing one, so code in forward mode raises here. Then
    that code runs as it is, or torch.compile raises if the graph must be whole.
    """
    if not torch.compiler.is_compiling():
        return False
    if forward_mode():
        raise NotImplementedError("fusedstep: torch.compile(fullgraph=True) has no forward mode")
    return forward_ad._current_level < 0  # true, and checked again before the trace is used again


def forward_mode() -> bool:
    """Whether a torch.func.jvp or a forward_ad.dual_level is under way."""
    return forward_ad._current_level >= 0


# torch.compile then calls it as it traces, when the levels are those of the traced code.
forward_mode._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _primal(tensor: Tensor) -> Tensor:
    """Without its tangent of the current level; a tensor of a lower level has none."""
    level = maybe_current_level()
    if level is not None and maybe_get_level(tensor) != level:
        return tensor
    primal: Tensor = forward_ad.unpack_dual(tensor).primal
    return primal
