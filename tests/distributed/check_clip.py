"""clip_grad_norm_ where torch has its own clip of fully_shard's gradients: the same norm, the same.

Every order that it takes, foreach or not, on one mesh and on two dimensions of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import nn

import fusedstep
from tests.distributed.check_meshes import shard_and_split
from tests.distributed.placed import named_mesh
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import make_model, shard, whole

Spread = Callable[[nn.Sequential], nn.Module]


def spreads(world: int) -> Iterator[tuple[Spread, int, int]]:
    """Ways to spread a model; which batches differ: those of `rank // per_batch` of `batches`."""
    yield shard, 1, world
    yield lambda model: shard(model, named_mesh(1, world)), 1, world
    yield lambda model: shard(model, named_mesh(world, 1)), 1, world
    if world == 4:
        yield lambda model: shard(model, named_mesh(2, 2)), 1, world
        yield lambda model: shard_and_split(model, named_mesh(2, 2)), 2, 2


@check(2, 4)
def clips_as_torch_clips_shards(ranks: Ranks) -> None:
    """torch has no norm of order inf where a shard is empty; there, as it clips one process."""
    for spread, per_batch, batches in spreads(ranks.world):
        ours, theirs, alone = (spread(make_model()), spread(make_model()), make_model())
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, alone)]
        modes = product((2, 1, math.inf, "inf"), (0.05, 1e3), (None, True, False))
        for step, (norm_type, max_norm, foreach) in enumerate(modes):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(4 * batches, 5, generator=generator, dtype=torch.float64)
            mine = x.chunk(batches)[ranks.rank // per_batch]
            for model, batch in ((ours, mine), (alone, x)):
                model.zero_grad()
                model(batch).square().mean().backward()
            pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
            for p, q in pairs:
                q.grad = p.grad.clone()
            options = {"norm_type": norm_type, "foreach": foreach}
            norm = fusedstep.clip_grad_norm_(ours.parameters(), max_norm, **options)
            expected = torch.nn.utils.clip_grad_norm_(alone.parameters(), max_norm, **options)
            assert_same_on_all_ranks(norm, "norm")
            torch.testing.assert_close(norm, expected.float(), rtol=1e-6, atol=0)
            if norm_type in (1, 2):
                torchs = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm, **options)
                torch.testing.assert_close(norm, torchs.full_tensor().float(), rtol=1e-6, atol=0)
                for p, q in pairs:
                    torch.testing.assert_close(whole(p.grad), whole(q.grad), rtol=1e-11, atol=0)
            left = fusedstep.get_total_norm([p.grad for p in ours.parameters()], norm_type)
            torch.testing.assert_close(left, norm.clamp(max=max_norm), rtol=1e-4, atol=0)
            for optimizer in optimizers:
                optimizer.step()
        for p, q in zip(ours.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(whole(p), q.detach(), rtol=1e-11, atol=1e-11)
