"""Several optimizers behind one, as torchtitan has them for the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import fusedstep
from tests.distributed.placed import named_mesh, whole_numbers
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import whole
from tests.support.tensors import assert_same_bits

LAYERS, WIDTH = 4, 6
SHAPES = [(WIDTH, WIDTH), (WIDTH,)] * LAYERS  # weight and bias of each
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Container(torch.optim.Optimizer):
    """An optimizer for each part of a model that this rank has; one state_dict, by names."""

    def __init__(self, parts: Sequence[nn.Module], **options: Any) -> None:
        self.parts = parts
        self.optimizers = [fusedstep.AdamW(p.parameters(), lr=0.1, **options) for p in parts]
        super().__init__([param for part in parts for param in part.parameters()], {})

    def step(self, closure: Any = None) -> Any:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            merged |= get_optimizer_state_dict(part, optimizer, options=FLAT)
        return merged

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            set_optimizer_state_dict(part, optimizer, state_dict, options=FLAT)


def part_of_model(numbers: Iterable[int], mesh: Any = None) -> nn.ModuleDict:
    """The layers with these numbers, under their names in the whole model; in shards on `mesh`."""
    values = whole_numbers(SHAPES, 0, torch.float32)
    part = nn.ModuleDict({str(i): nn.Linear(WIDTH, WIDTH) for i in numbers})
    for i, param in indexed(part):
        param.data.copy_(values[i])
    for layer in part.values() if mesh is not None else ():
        fully_shard(layer, mesh=mesh)
    return part


def indexed(part: nn.ModuleDict) -> Iterator[tuple[int, nn.Parameter]]:
    """The parameters of a part, and where they are among the whole model's."""
    for name, layer in part.items():
        yield from enumerate(layer.parameters(), start=2 * int(name))


def set_gradients(part: nn.ModuleDict, step: int) -> None:
    """The same of a layer, wherever it is."""
    grads = whole_numbers(SHAPES, step, torch.float32)
    for i, param in indexed(part):
        param.grad = grads[i]
        if isinstance(param, DTensor):
            param.grad = distribute_tensor(grads[i], param.device_mesh, param.placements)


def steps(optimizer: Any, parts: Sequence[nn.ModuleDict], first: int, clip: Any = None) -> None:
    """Two steps, numbered from the first."""
    for step in (first, first + 1):
        for part in parts:
            set_gradients(part, step)
        if clip is not None:
            clip()
        optimizer.step()


def states_of(part: nn.Module, optimizer: Container) -> dict[str, Any]:
    return {"model": get_model_state_dict(part), "optimizer": optimizer.state_dict()}


def check_against(alone: nn.ModuleDict, parts: Sequence[nn.ModuleDict]) -> None:
    expected = dict(indexed(alone))
    for part in parts:
        for i, param in indexed(part):
            assert_same_bits(whole(param), expected[i].detach(), f"parameter {i}")


@check(2, 4)
def stages_of_a_pipeline_saved_and_cut_elsewhere(ranks: Ranks) -> None:
    """Two stages, of 4 ranks each in shards: clipped as one model, and loaded by other stages."""
    mesh = named_mesh(2, ranks.world // 2)
    stage, pipeline = mesh.get_local_rank(0), mesh.get_group(0)
    shards = mesh["dim1"] if ranks.world > 2 else None
    alone = part_of_model(range(LAYERS))
    reference = fusedstep.AdamW(alone.parameters(), lr=0.1, max_norm=0.5)
    path = ranks.folder / f"stages-{ranks.world}"
    for saved, cut in ((False, 1), (True, 3)):
        part = part_of_model([range(cut), range(cut, LAYERS)][stage], shards)
        optimizer = Container([part], max_norm=0.5, norm_groups=[pipeline])
        if saved:
            states = states_of(part, optimizer)
            dcp.load(states, checkpoint_id=path)
            set_model_state_dict(part, states["model"])
            optimizer.load_state_dict(states["optimizer"])
        steps(optimizer, [part], first=1 + 2 * saved)
        steps(reference, [alone], first=1 + 2 * saved)
        check_against(alone, [part])
        assert_same_on_all_ranks(optimizer.optimizers[0].grad_norm, "grad_norm")
        if not saved:
            dcp.save(states_of(part, optimizer), checkpoint_id=path)


@check(2)
def several_stages_on_each_rank(ranks: Ranks) -> None:
    """An optimizer for each cannot know the others' norm: the gradients are clipped before."""
    parts = [part_of_model([i]) for i in range(ranks.rank, LAYERS, ranks.world)]
    alone = part_of_model(range(LAYERS))
    params = [param for part in parts for param in part.parameters()]
    world = [torch.distributed.group.WORLD]
    steps(
        Container(parts), parts, 1,
        lambda: fusedstep.clip_grad_norm_(params, 0.5, groups=world),
    )  # fmt: skip
    reference = fusedstep.AdamW(alone.parameters(), lr=0.1)
    steps(reference, [alone], 1, lambda: fusedstep.clip_grad_norm_(alone.parameters(), 0.5))
    check_against(alone, parts)
