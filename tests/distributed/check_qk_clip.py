"""QK-Clip of DTensors: every rank scales its rows, whole heads or not, and asks no other rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

import fusedstep
from tests.distributed.ranks import Ranks, check
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits

THRESHOLD = 10.0
LOGITS = torch.tensor([40.0, 5.0, 31.0, 10.0, 90.0])
HEADS = len(LOGITS)


def values(rows: int, *rest: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, *rest, generator=generator).to(dtype)


def assert_clips_like_one_process(whole: list[Tensor], placed: list[Tensor]) -> None:
    """With the logits as a plain tensor, and as replicated DTensors."""
    fusedstep.qk_clip_(whole, [LOGITS] * len(whole), THRESHOLD)
    logits = [
        distribute_tensor(LOGITS, weight.device_mesh, [Replicate()] * weight.device_mesh.ndim)
        if i % 2
        else LOGITS
        for i, weight in enumerate(placed)
    ]
    versions = [weight._version for weight in placed]
    with patch.object(dist, "all_gather", side_effect=AssertionError("a rank asked another")):
        fusedstep.qk_clip_(placed, logits, THRESHOLD)
    assert [weight._version for weight in placed] == [version + 1 for version in versions]
    for i, (weight, expected) in enumerate(zip(placed, whole, strict=True)):
        assert_same_bits(weight.full_tensor(), expected, f"weights[{i}]")


def check_placements(mesh: DeviceMesh, *all_placements: Sequence[Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        whole, placed = [], []
        for placements in all_placements:
            # Of one row a head, of a few that no number of ranks divides, and of several chunks.
            for head_dim, rest in ((1, (4,)), (3, (7, 2)), (16, (1003,))):
                whole.append(values(HEADS * head_dim, *rest, dtype=dtype))
                placed.append(distribute_tensor(whole[-1].clone(), mesh, placements))
        assert_clips_like_one_process(whole, placed)


@check(2, 3, 4)
def heads_are_clipped_wherever_their_rows_are(ranks: Ranks) -> None:
    """Uneven and, with 4 ranks, empty shards of rows; shards of columns; replicas."""
    check_placements(init_device_mesh("cpu", (ranks.world,)), [Shard(0)], [Shard(1)], [Replicate()])
    one = distribute_tensor(values(1, 9), init_device_mesh("cpu", (ranks.world,)), [Shard(0)])
    expected = one.full_tensor() * 0.5
    fusedstep.qk_clip_(one, LOGITS[:1], THRESHOLD)  # one row, which one rank has
    assert_same_bits(one.full_tensor(), expected, "one row")


@check(4)
def heads_are_clipped_on_meshes_of_two_dimensions(ranks: Ranks) -> None:
    check_placements(
        init_device_mesh("cpu", (2, 2)),
        [Shard(0), Shard(0)],
        [Shard(0), Shard(1)],
        [Shard(1), Shard(0)],
        [Replicate(), Shard(0)],
        [Shard(0), Replicate()],
    )


@check(2, 4)
def heads_are_clipped_under_fsdp_over_tensor_parallelism(ranks: Ranks) -> None:
    """FSDP's dimension of the mesh comes first, but it divides what the other one left."""
    mesh = init_device_mesh("cpu", (ranks.world // 2, 2), mesh_dim_names=("dp", "tp"))
    plain, spread = (nn.Sequential(nn.Linear(6, HEADS * 8)) for _ in range(2))
    spread.load_state_dict(plain.state_dict())
    parallelize_module(spread, mesh["tp"], {"0": ColwiseParallel()})
    fully_shard(spread, mesh=mesh["dp"])
    placed, whole = list(spread.parameters()), list(plain.parameters())
    assert all(len(param.placements) == 2 for param in placed)
    for one, many in zip(whole, placed, strict=True):
        one.data.copy_(many.full_tensor())  # which the ranks initialized differently
    assert_clips_like_one_process(whole, placed)


class Calls(TorchDispatchMode):
    """Counts the calls of the op."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.fusedstep.qk_clip_.default
        return func(*args, **(kwargs or {}))


@check(2, 4)
def heads_are_clipped_where_a_rank_has_several_runs_of_rows(ranks: Ranks) -> None:
    """Of strided shards: each half of the rows is divided among the ranks; of 4, one has none."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    held = {
        2: [[0, 1, 2, 5, 6, 7], [3, 4, 8, 9]],
        4: [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], []],
    }[ranks.world][ranks.rank]
    shards, expected = [], []
    for dtype in (torch.float32, torch.bfloat16):
        for rest in ((), (3,), (513, 2)):
            whole = values(2 * HEADS, *rest, dtype=dtype)
            shards.append(whole[held])
            if rest:  # columns that lie in memory one after the other: runs of rows have gaps
                shards.append(whole[held].transpose(0, 1).contiguous().transpose(0, 1))
            fusedstep.qk_clip_(whole, LOGITS, THRESHOLD)
            expected += [whole[held]] * (2 if rest else 1)
    placed = []
    for shard in shards:
        whole = torch.empty(2 * HEADS, *shard.shape[1:], device="meta")
        placed.append(
            DTensor.from_local(
                shard, mesh, [_StridedShard(0, split_factor=2)], run_check=False,
                shape=whole.shape, stride=whole.stride(),
            )
        )  # fmt: skip
    with Calls() as calls:
        fusedstep.qk_clip_(placed, [LOGITS] * len(placed), THRESHOLD)
    assert calls.count == bool(held)
    for i, (shard, wanted) in enumerate(zip(shards, expected, strict=True)):
        assert_same_bits(shard, wanted, f"weights[{i}]")


@check(2)
def fake_shards_are_taken(ranks: Ranks) -> None:
    """Which rows a rank has is computed from placements, whatever mode is on."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    with FakeTensorMode():
        weight = DTensor.from_local(torch.empty(7, 3), mesh, [Shard(0)], run_check=False)
        fusedstep.qk_clip_(weight, torch.empty(2), THRESHOLD)
    weight = distribute_tensor(values(14, 3), mesh, [Shard(0)])
    expected = values(14, 3)
    fusedstep.qk_clip_([weight, expected], [LOGITS[:2]] * 2, THRESHOLD)
    assert_same_bits(weight.full_tensor(), expected, "weight")


@check(2)
def heads_whose_place_is_unknown(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world,))
    weight = distribute_tensor(torch.ones(10, 2), mesh, [Shard(0)])

    def refused(weights: Any, logits: Any, argument: str, must: str, got: str) -> None:
        with refuses("qk_clip_", argument, must, got, ValueError):
            fusedstep.qk_clip_([weight, weights], [LOGITS, logits], THRESHOLD)

    must, got = "be sharded or replicated", r".*Partial.*"
    refused(
        DTensor.from_local(torch.ones(5, 2), mesh, [Partial()]), LOGITS, "weights[1]", must, got
    )
    must, got = r"be a plain tensor or replicated: full_tensor\(\) returns it whole", r".*Shard.*"
    sharded = distribute_tensor(LOGITS, mesh, [Shard(0)])
    refused(torch.ones(5, 2), sharded, "max_logits[1]", must, got)
    must = "have the 5 rows on this rank that its placements give it"
    lopsided = DTensor.from_local(
        torch.ones(8 if ranks.rank else 2, 2), mesh, [Shard(0)], run_check=False,
        shape=torch.Size((10, 2)), stride=(2, 1),
    )  # fmt: skip
    refused(lopsided, LOGITS, "weights[1]", must, "8" if ranks.rank else "2")
    assert (weight.to_local() == 1).all()
