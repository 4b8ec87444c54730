"""qk_clip_: bounds attention logits by scaling the query and key weights of single heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense, require_number
from fusedstep.fakes import register_writers
from fusedstep.optim.distributed import is_dtensor, is_flattened, local, require_placed
from fusedstep.optim.memory import by_device, gapless, refuse_overlap
from fusedstep.optim.shards import held_here

register_writers("qk_clip_")

FUNCTION = "qk_clip_"


class _Rows(NamedTuple):
    """Consecutive rows of a weight, which the op takes as a weight of its own."""

    values: Tensor
    max_logits: Tensor  # [heads], of the whole weight; float32 without gaps
    head_dim: int
    first: int  # of these rows, in the whole weight

    @property
    def device(self) -> torch.device:
        return self.values.device


def qk_clip_(
    weights: Tensor | Iterable[Tensor],
    max_logits: Tensor | Iterable[Tensor],
    threshold: float,
) -> None:
    """Scales, in place, the heads of query and key weights whose attention logits grew too large.

    Call it after the optimizer's step with the largest logits that the forward passes of this step
    saw. Rows of head h are multiplied by `sqrt(min(1, threshold / max_logits[h]))`, computed in
    float64 and rounded to float32 (float64 for float64 weights); the product is rounded once to the
    weight's dtype. Queries and keys together scale the head's logits by the root's square, so the
    largest becomes `threshold`, up to rounding. Which heads are scaled is decided on the device,
    which is not waited for. All weights of a device take one launch on a GPU, and a small one that
    sends their addresses. A head that is not scaled is neither read nor written, unless its weight
    has gaps in memory.

    - Grouped-query attention: a key head serves several query heads. Give the key weight the
      largest logit over the query heads that share each key head.
    - Multi-head latent attention: all heads share the rotary part of the keys, which must stay as
      it is. Leave it out, and pass the rotary rows of the query weight in a second call as well:
      they are then scaled by the whole `min(1, threshold / max_logits[h])`.
    - Biases of the query and key layers are scaled like weights: list them too.
    - Several processes: every rank must pass the same logits, the largest over all ranks that have
      a part of the batch (`all_reduce` with `ReduceOp.MAX`); nothing is communicated here.

    A logit that is NaN, infinite or negative scales nothing: an infinite one would make a head's
    queries and keys zero, and their gradients with them, for good.

    Args:
        weights: A tensor or an iterable of tensors that do not overlap: float32, float64, bfloat16
            or float16, shape [heads * head_dim, ...] with the rows of a head together, on any
            devices. A view [heads, head_dim, ...] of a weight fits too, a bias [heads * head_dim]
            as well. DTensors may be sharded along any dimension and need not have whole heads on a
            rank. A bfloat16 parameter with a master is written like any other: its next step
            starts from the scaled value (see `master` in `fusedstep.optim.Options`).
        max_logits: For each weight a tensor [heads] on its device, floating-point and read as
            float32: the largest logit of each head, as the softmax sees it, with the factor of
            1 / sqrt(head_dim). All ranks pass it whole, as a plain tensor or a replicated DTensor.
        threshold: The logit above which a head is scaled, above 0. Kimi K2 uses 100.

    Raises:
        ValueError, TypeError: `qk_clip_: <argument>[i] must <property>, got <value>`, with no
            weight changed.

    Example:
        >>> q, k = torch.ones(2, 4), torch.ones(2, 4)  # two heads of one row
        >>> largest = torch.tensor([400.0, 30.0])
        >>> fusedstep.qk_clip_([q, k], [largest, largest], threshold=100.0)
        >>> q[:, 0]
        tensor([0.5000, 1.0000])

    Source: QK-Clip of Kimi K2 (https://arxiv.org/abs/2507.20534, section 2.1), where it completes
    Muon to MuonClip. It works after any optimizer's step.
    """
    if torch.compiler.is_dynamo_compiling():
        return _clip_outside_graph(weights, max_logits, threshold)
    threshold = require_number(FUNCTION, "threshold", threshold, "be above 0")
    if threshold == 0:
        refuse(FUNCTION, "threshold", "be above 0", threshold)
    listed = _list_of("weights", weights)
    found = _checked(listed, _list_of("max_logits", max_logits))
    names = [f"weights[{i}]" for i in range(len(listed))]
    refuse_overlap(FUNCTION, names, [local(weight).detach() for weight in listed])
    for members in by_device(found).values():
        dense = [gapless(rows.values) for rows in members]
        torch.ops.fusedstep.qk_clip_(
            dense,
            [rows.max_logits for rows in members],
            [rows.head_dim for rows in members],
            [rows.first for rows in members],
            threshold,
        )
        for rows, copy in zip(members, dense, strict=True):
            if copy is not rows.values:
                rows.values.copy_(copy)
    torch.autograd.graph.increment_version(listed)


@torch._disable_dynamo
def _clip_outside_graph(*args: Any) -> None:
    """Breaks the graph of a compiled function: memory is compared in eager mode."""
    qk_clip_(*args)


def _list_of(argument: str, tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    for i, tensor in enumerate(listed):
        if not isinstance(tensor, Tensor):
            refuse(FUNCTION, f"{argument}[{i}]", "be a tensor", type(tensor).__name__, TypeError)
        require_dense(FUNCTION, f"{argument}[{i}]", local(tensor))
    return listed


def _checked(weights: list[Tensor], max_logits: list[Tensor]) -> list[_Rows]:
    """The rows with elements that are here: of a strided shard several runs, of others one."""
    if len(max_logits) != len(weights):
        must = f"have length {len(weights)}, a tensor for each weight"
        refuse(FUNCTION, "max_logits", must, len(max_logits))
    found = []
    for i, (weight, logits) in enumerate(zip(weights, max_logits, strict=True)):
        _require_rows(f"weights[{i}]", weight)
        _require_whole(f"max_logits[{i}]", logits, weight)
        heads, rows = logits.numel(), weight.shape[0]
        head_dim = rows // max(heads, 1)
        if head_dim * heads != rows:
            must = f"have a multiple of {heads} rows, as max_logits[{i}] has {heads} heads"
            refuse(FUNCTION, f"weights[{i}]", must, f"shape {tuple(weight.shape)}")
        held, shard = held_here(weight, 0), local(weight).detach()
        sizes = [len(indices) for indices in held]
        if sum(sizes) != len(shard):
            must = f"have the {sum(sizes)} rows on this rank that its placements give it"
            refuse(FUNCTION, f"weights[{i}]", must, len(shard))
        largest = gapless(local(logits).detach().to(torch.float32))
        found += [
            _Rows(values, largest, head_dim, indices.start)
            for indices, values in zip(held, shard.split(sizes), strict=True)
            if values.numel()
        ]
    return found


def _require_rows(argument: str, weight: Tensor) -> None:
    """A weight of which this process has known rows, in memory."""
    require_placed(FUNCTION, argument, weight)
    if is_flattened(weight):
        must = "be a weight with rows, not FSDP1's slice of one"
        refuse(FUNCTION, argument, must, f"shape {tuple(weight.shape)}", TypeError)
    if weight.dim() == 0:
        refuse(FUNCTION, argument, "have one dimension or more", f"shape {tuple(weight.shape)}")
    if torch._is_zerotensor(local(weight)):
        refuse(FUNCTION, argument, "hold its values in memory", "a lazy zero")


def _require_whole(argument: str, logits: Tensor, weight: Tensor) -> None:
    """The logits of all heads, on the weight's device."""
    if is_dtensor(logits) and not all(p.is_replicate() for p in logits.placements):
        must = "be a plain tensor or replicated: full_tensor() returns it whole"
        refuse(FUNCTION, argument, must, logits.placements)
    if logits.dim() != 1:
        refuse(FUNCTION, argument, "have one dimension", f"shape {tuple(logits.shape)}")
    if logits.device != weight.device:
        refuse(FUNCTION, argument, f"be on its weight's device {weight.device}", logits.device)
