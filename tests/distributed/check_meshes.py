"""More than one mesh, and meshes of two dimensions: one collective each, one norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fusedstep
from tests.distributed.placed import named_mesh
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import SideBySide, shard


@contextmanager
def counted_gathers() -> Iterator[list[torch.Size]]:
    """The shapes of what was gathered meanwhile."""
    shapes: list[torch.Size] = []
    gather = dist.all_gather

    def counting(rows: list[torch.Tensor], values: torch.Tensor, **options: object) -> object:
        shapes.append(values.shape)
        return gather(rows, values, **options)

    with patch.object(dist, "all_gather", counting):
        yield shapes


@check(2, 3, 4)
def replicated_shards(ranks: Ranks) -> None:
    """HSDP: each shard lies on several ranks and counts once."""
    shapes = [(1, ranks.world), (ranks.world, 1)] if ranks.world < 4 else [(2, 2)]
    for shape in shapes:
        mesh = named_mesh(*shape)
        models = SideBySide(lambda model, mesh=mesh: shard(model, mesh), ranks.rank, ranks.world)
        for _ in range(3):
            models.step()


@check(2, 3)
def several_meshes_in_one_model(ranks: Ranks) -> None:
    meshes = named_mesh(ranks.world, name="a"), named_mesh(1, ranks.world, name="b")
    models = SideBySide(lambda model: shard(model, *meshes), ranks.rank, ranks.world)
    assert len({param.device_mesh for param in models.spread.parameters()}) == 2
    for _ in range(3):
        models.step()
    models.backward()
    with counted_gathers() as shapes:
        models.update()
    assert shapes == [torch.Size([2])] * 2  # of the shards, and of all that is not sharded
    models.backward()
    with counted_gathers() as shapes:
        fusedstep.clip_grad_norm_(models.spread.parameters(), 1.0)
    assert shapes == [torch.Size([2])] * 2  # of the shards, and of all that is not sharded


@check(2)
def nothing_is_communicated_unless_a_norm_is_wanted(ranks: Ranks) -> None:
    models = SideBySide(shard, ranks.rank, ranks.world, max_norm=None)
    models.step()
    models.backward()
    with counted_gathers() as shapes:
        models.update()
    assert not shapes


def shard_and_split(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    """Tensor parallelism along the second dimension of `mesh`, then FSDP along the first."""
    dimensions = mesh.mesh_dim_names
    plan = {
        "0": ColwiseParallel(use_local_output=False),
        "2": RowwiseParallel(),
        "4": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh[dimensions[1]], plan)
    return shard(model, mesh[dimensions[0]])


@check(4)
def shards_of_splits(ranks: Ranks) -> None:
    """FSDP times tensor parallelism: both dimensions sharded, or only the first (a row's bias)."""
    mesh = named_mesh(2, 2)
    models = SideBySide(lambda model: shard_and_split(model, mesh), ranks.rank // 2, 2)
    assert {str(p.placements[1]) for p in models.spread.parameters()} >= {"R", "S(0)", "S(1)"}
    for _ in range(3):
        models.step()
    models.backward()
    with counted_gathers() as shapes:
        models.update()
    assert shapes == [torch.Size([3])] * 2  # along each dimension, both kinds in one message


@check(4)
def meshes_that_share_some_of_their_ranks(ranks: Ranks) -> None:
    """Experts on half of the ranks each, the rest on all: every rank finds the norm of its own."""
    root = named_mesh(2, 2)
    everywhere, half = named_mesh(4, name="all"), root["dim1"]
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(7, 3, generator=generator) for _ in range(2)]
    params = []
    for grad, mesh in zip(grads, (everywhere, half), strict=True):
        params.append(nn.Parameter(distribute_tensor(torch.zeros(7, 3), mesh, [Shard(0)])))
        params[-1].grad = distribute_tensor(grad, mesh, [Shard(0)])
    optimizer = fusedstep.AdamW(params, max_norm=1.0)
    optimizer.step()
    assert_same_on_all_ranks(optimizer.grad_norm, "grad_norm")
    expected = fusedstep.get_total_norm(grads)
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=1e-6, atol=0)
