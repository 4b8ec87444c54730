"""What a step with a norm sends, counted, and what torch's clip and step send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import fusedstep
from tests.distributed.check_meshes import shard_and_split
from tests.distributed.check_tensor_parallel import split
from tests.distributed.placed import named_mesh
from tests.distributed.ranks import Ranks, check
from tests.distributed.side_by_side import make_model, shard


class Traffic(TorchDispatchMode):
    """Lists the collectives meanwhile: the name of each, and how many bytes this rank gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls the collectives itself, and these come here
        name = op.name().split("::")
        if name[0] in ("c10d", "_c10d_functional") and name[1] not in (
            "wait_tensor",
            "_wrap_tensor_autograd",
        ):
            given = args[1] if "allgather" in name[1] else args[0]  # after where the result goes
            listed = [given] if isinstance(given, Tensor) else given
            self.sent.append((name[1], sum(t.numel() * t.element_size() for t in listed)))
        return op(*args, **(kwargs or {}))


def sent_by(call: Callable[..., Any], *args: Any, **options: Any) -> list[tuple[str, int]]:
    with Traffic() as traffic:
        call(*args, **options)
    return traffic.sent


def gathers(*numbers: int) -> list[tuple[str, int]]:
    """One gather each, of this many float64 numbers a rank."""
    return [("allgather_", 8 * number) for number in numbers]


def beside_plain_layers(model: nn.Sequential) -> nn.Sequential:
    fully_shard(model[0])
    fully_shard(model[4])
    return model


@check(4)
def collectives_of_a_step_with_a_norm(ranks: Ranks) -> None:
    """For each parallelism: what a step and a clip send, never more than torch's clip alone.

    One gather along each dimension that something is sharded over: the norms of each way to be
    sharded, and that of all that is not. torch reduces a norm for each tensor along the same.
    """
    grid, flat = named_mesh(2, 2), named_mesh(4, name="flat")
    world, across = [dist.group.WORLD], [grid.get_group(0)]
    cases: dict[str, tuple[Callable[[nn.Sequential], nn.Module], list[Any], Any]] = {
        "DDP": (DistributedDataParallel, [], gathers()),
        "FSDP2": (shard, [], gathers(2)),
        "HSDP": (lambda model: shard(model, grid), [], gathers(2)),
        "TP": (split, [], gathers(2)),
        "FSDP2 x TP": (lambda model: shard_and_split(model, grid), [], gathers(3, 3)),
        "two meshes": (lambda model: shard(model, flat, grid), [], gathers(2, 2)),
        "FSDP2 and plain": (beside_plain_layers, [], gathers(2)),
        "stages": (lambda model: model, world, gathers(1)),
        "stages of FSDP2": (lambda model: shard(model, grid["dim1"]), across, gathers(2, 1)),
    }
    without_counterpart = ("two meshes", "FSDP2 and plain", "stages", "stages of FSDP2")
    for name, (spread, groups, expected) in cases.items():
        params = list(spread(make_model(torch.float32)).parameters())
        optimizer = fusedstep.AdamW(params, max_norm=1.0, norm_groups=groups)
        for _ in range(2):  # the second time, nothing is new
            for param in params:
                param.grad = torch.ones_like(param)
            assert sent_by(optimizer.step) == expected, name
            sent = sent_by(fusedstep.clip_grad_norm_, params, 1.0, groups=groups)
            assert sent == expected, name
            if name not in without_counterpart:
                theirs = sent_by(torch.nn.utils.clip_grad_norm_, params, 1.0)
                assert len(sent) <= len(theirs), name
                assert sum(n for _, n in sent) <= sum(n for _, n in theirs), name
