"""qk_clip_: bounds attention logits by scaling the query and key weights of single heads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fusedstep.checks import refuse, require_dense, require_number
from fusedstep.fakes import register_writers
from fusedstep.optim.distributed import is_dtensor, is_flattened, local, require_placed
from fusedstep.optim.memory import gapless, refuse_overlap

register_writers("qk_clip_")

FUNCTION = "qk_clip_"


class _Weight(NamedTuple):
    """What the op takes of a weight."""

    piece: Tensor  # the local rows
    max_logits: Tensor  # [heads], float32 without gaps
    head_dim: int
    first_row: int  # of the local rows, in the whole weight


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
    names = [f"weights[{i}]" for i in range(len(found))]
    refuse_overlap(FUNCTION, names, [weight.piece for weight in found])
    for members in _by_device(found):
        dense = [gapless(weight.piece) for weight in members]
        torch.ops.fusedstep.qk_clip_(
            dense,
            [weight.max_logits for weight in members],
            [weight.head_dim for weight in members],
            [weight.first_row for weight in members],
            threshold,
        )
        for weight, copy in zip(members, dense, strict=True):
            if copy is not weight.piece:
                weight.piece.copy_(copy)
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


def _checked(weights: list[Tensor], max_logits: list[Tensor]) -> list[_Weight]:
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
        found.append(
            _Weight(
                local(weight).detach(),
                gapless(local(logits).detach().to(torch.float32)),
                head_dim,
                _first_row(f"weights[{i}]", weight),
            )
        )
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


def _first_row(argument: str, weight: Tensor) -> int:
    """The number, in the whole weight, of the first local row. The local rows are consecutive."""
    if not is_dtensor(weight):
        return 0
    mesh = weight.device_mesh
    placements: list[Any] = list(weight.placements)
    coordinate = cast("list[int]", mesh.get_coordinate())  # require_placed has checked that it is
    splits = [d for d, p in enumerate(placements) if not p.is_replicate() and p.dim == 0]
    # Each dimension of the mesh divides what those before it left to a rank. FSDP divides the rows
    # that tensor parallelism left, though its dimension is the first: its placement then knows how
    # many parts the later dimensions make.
    late = {d: p.split_factor for d, p in enumerate(placements) if hasattr(p, "split_factor")}
    first, rows, known = 0, weight.shape[0], True
    for d in sorted(splits, key=lambda d: (d in late, -d if d in late else d)):
        each = -(-rows // mesh.size(d))
        begin = min(each * coordinate[d], rows)
        first, rows = first + begin, min(each, rows - begin)
        parts = math.prod(mesh.size(later) for later in splits if later > d)
        known = known and late.get(d, parts) == parts
    if not known or rows != local(weight).shape[0]:
        must = "have consecutive rows on every rank, as many as DTensor gives it"
        refuse(FUNCTION, argument, must, weight.placements)
    return first


def _by_device(weights: list[_Weight]) -> Iterable[list[_Weight]]:
    """The weights that have elements here, by device."""
    groups: dict[torch.device, list[_Weight]] = {}
    for weight in weights:
        if weight.piece.numel() > 0:
            groups.setdefault(weight.piece.device, []).append(weight)
    return groups.values()
