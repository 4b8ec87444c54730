"""Muon over whole models: FSDP, HSDP, FSDP of tensor parallelism, training, checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

import fusedstep
from tests.distributed import divided
from tests.distributed.check_checkpoints import load
from tests.distributed.check_meshes import named_mesh
from tests.distributed.check_portable import WAYS, whole
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.twins import Twins

TOKENS, WIDTH, HEADS, HIDDEN = 40, 24, 4, 44
OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


class Block(nn.Module):
    """As in Llama: grouped-query attention, a gated MLP, gains before both."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before_attention(x)
        q, k, v = (
            project(h).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(h.transpose(1, 2).flatten(-2))
        h = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        nn.init.normal_(self.norm.weight)  # distinct values where models stand for gradients

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


Spread = Callable[[Model], nn.Module]


def sharded(mesh: DeviceMesh) -> Spread:
    def spread(model: Model) -> nn.Module:
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return spread


def sharded_and_split(mesh: DeviceMesh) -> Spread:
    """Tensor parallelism along the second dimension; keys and values are left whole there."""
    rows, columns = ColwiseParallel(), RowwiseParallel()
    plan = {"q": rows, "gate": rows, "up": rows, "o": columns, "down": columns}

    def spread(model: Model) -> nn.Module:
        for block in model.blocks:
            parallelize_module(block, mesh["dim1"], plan)
        return sharded(mesh["dim0"])(model)

    return spread


def muon_over(model: nn.Module, **options: Any) -> fusedstep.Muon:
    """Muon for the blocks' matrices, AdamW for embedding, head and gains."""
    named = dict(model.named_parameters())
    matrices = [name for name, param in named.items() if "blocks" in name and param.dim() == 2]
    return fusedstep.Muon(
        [
            {"params": [named[name] for name in matrices]},
            {"params": [p for n, p in named.items() if n not in matrices], "use_muon": False},
        ],
        **OPTIONS | options,
    )


class Models(Twins):
    """The same model whole and spread over the ranks, and a Muon over each."""

    def __init__(self, spread: Spread, **options: Any) -> None:
        self.spread_model, self.alone, self.spread = spread, Model(), spread(Model())
        super().__init__(muon_over(self.alone, **options), muon_over(self.spread, **options))

    def set_grads(self) -> None:
        """The values of other models, spread in the same way."""
        for model, of in (
            (self.alone, Model(1 + self.steps)),
            (self.spread, self.spread_model(Model(1 + self.steps))),
        ):
            for param, value in zip(model.parameters(), of.parameters(), strict=True):
                param.grad = value.detach()

    def step(self) -> None:
        self.set_grads()
        self.update()


@check(2, 3, 4)
def sharded_models(ranks: Ranks) -> None:
    twins = Models(sharded(init_device_mesh("cpu", (ranks.world,))), ema_decay=0.9)
    for _ in range(3):
        twins.step()


@check(4)
def shards_of_replicas_and_of_splits(ranks: Ranks) -> None:
    mesh = named_mesh(2, 2)
    for spread in (sharded(mesh), sharded_and_split(mesh)):
        twins = Models(spread, normuon_beta2=0.9)
        for _ in range(3):
            twins.step()
    kinds = {str(p.placements) for p in twins.spread.parameters() if isinstance(p, DTensor)}
    assert any("_StridedShard" in kind for kind in kinds)


@check(2, 4)
def trained_together(ranks: Ranks) -> None:
    """Forward, backward, clip and step; the average of two equal gradients is exact."""
    mesh = named_mesh(2) if ranks.world == 2 else named_mesh(2, 2)
    twins = Models(sharded(mesh), max_norm=0.5)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(TOKENS, (3, 17), generator=generator)
        for model in (twins.alone, twins.spread):
            logits = model(tokens[:, :-1])
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        twins.update()
        norm = twins.optimizer.grad_norm
        assert_same_on_all_ranks(norm, "grad_norm")
        torch.testing.assert_close(norm, twins.reference.grad_norm, rtol=1e-6, atol=0)
        assert norm > 0.5
        for optimizer in (twins.reference, twins.optimizer):
            optimizer.zero_grad()


# --- checkpoints ----------------------------------------------------------------------------------


def save(twins: Models, folder: Path) -> None:
    model, optimizer = get_state_dict(twins.spread, twins.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)


def resume(twins: Models, folder: Path) -> None:
    """Loads the state after three steps; the next have the bits of a run of one process."""
    for _ in range(3):
        twins.set_grads()
        twins.reference.step()
        twins.steps += 1
    twins.optimizer.zero_grad()  # as a run that begins
    load(folder, twins.spread, twins.optimizer)
    twins.check()
    for _ in range(3):
        twins.step()


OPTIONS_SAVED: list[dict[str, Any]] = [{}, {"ema_decay": 0.9}, {"normuon_beta2": 0.9}]


@check(2, 3)
def muon_saved_by_two_loaded_by_three(ranks: Ranks) -> None:
    for i, options in enumerate(OPTIONS_SAVED):
        folder = ranks.folder / f"muon checkpoint {i}"
        twins = Models(sharded(init_device_mesh("cpu", (ranks.world,))), **options)
        if ranks.world == 2:
            for _ in range(3):
                twins.step()
            save(twins, folder)
        else:
            resume(twins, folder)


@check(4)
def moments_saved_in_one_division_loaded_in_another(ranks: Ranks) -> None:
    """Rows become columns, whose moments every rank of the second dimension holds."""
    mesh = named_mesh(2, 2)
    ways = [sharded(init_device_mesh("cpu", (4,))), sharded_and_split(mesh), sharded(mesh)]
    for i, (before, after) in enumerate(zip(ways, ways[1:] + ways[:1], strict=True)):
        folder = ranks.folder / f"divided moments {i}"
        twins = Models(before, normuon_beta2=0.9)
        for _ in range(3):
            twins.step()
        save(twins, folder)
        resume(Models(after, normuon_beta2=0.9), folder)


def normuon(params: Iterable[Tensor], **options: Any) -> fusedstep.Muon:
    """For the matrices of any model; AdamW for the rest."""
    matrices, rest = [], []
    for param in params:
        (matrices if param.dim() > 1 else rest).append(param)
    groups = [{"params": matrices, "normuon_beta2": 0.9}, {"params": rest, "use_muon": False}]
    return fusedstep.Muon(groups, **options)


@check(2, 4)
def moments_through_every_checkpoint(ranks: Ranks) -> None:
    wraps = (divided.sharded, divided.split)
    if ranks.world == 4:
        wraps = (divided.sharded_and_replicated, divided.sharded_and_split)
    for wrap, way in itertools.product(wraps, WAYS):
        if wrap is divided.sharded_and_split and way is whole:
            continue  # torch's distribute_tensor refuses rows that both dimensions share unevenly
        first, second = (divided.Divided(wrap, normuon, lr=0.02) for _ in range(2))
        first.run(*range(3))
        second.run(20)  # something else is there
        way(first, second, ranks.folder / f"moments-{wrap.__name__}-{way.__name__}")
        divided.assert_same_parts(second, first)
        for one in (first, second):
            one.run(*range(3, 6))
        divided.assert_same_parts(second, first)
