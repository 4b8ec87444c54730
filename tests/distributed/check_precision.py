"""Rules and modes on shards: bit for bit what one process does, also from a checkpoint on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import fusedstep
from fusedstep.optim.distributed import local
from tests.distributed.check_checkpoints import load
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check
from tests.distributed.side_by_side import make_model, older, shard, whole
from tests.support.optimizers import OPTIMIZERS, Kind
from tests.support.refusals import refuses
from tests.support.tensors import assert_same_bits

MODES: list[dict[str, Any]] = [
    {"master": "float32"},
    {"master": "correction", "state_dtype": torch.bfloat16},
    {"stochastic_rounding": True, "state_dtype": torch.bfloat16, "ema_decay": 0.9},
    {"master": "remainder", "ema_decay": 0.9},
]


class Both:
    """A model in shards and one that is whole, given the same gradients; no norm is asked for."""

    def __init__(self, kind: Kind, dtype: torch.dtype, **options: Any) -> None:
        self.alone, self.spread = make_model(dtype), shard(make_model(dtype))
        self.reference = kind.ours(self.alone.parameters(), **options)
        self.optimizer = kind.ours(self.spread.parameters(), **options)
        self.steps = 0

    def set_gradients(self) -> None:
        """Random ones, of the parameters' dtype."""
        generator = torch.Generator().manual_seed(self.steps)
        for p, q in zip(self.spread.parameters(), self.alone.parameters(), strict=True):
            q.grad = torch.randn(q.shape, generator=generator).to(q.dtype)
            p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)
        self.steps += 1

    def step(self) -> None:
        self.set_gradients()
        self.reference.step()
        self.optimizer.step()

    def check(self) -> None:
        """Parameters and all their state."""
        for p, q in zip(self.spread.parameters(), self.alone.parameters(), strict=True):
            assert_same_bits(whole(p), q, "a parameter")
            state, expected = self.optimizer.state[p], self.reference.state[q]
            assert state.keys() == expected.keys()
            for name, value in state.items():
                assert_same_bits(whole(value), expected[name], name)


@check(2, 3)
def rules_on_shards(ranks: Ranks) -> None:
    for kind in OPTIMIZERS:
        both = Both(kind, torch.float32)
        for _ in range(3):
            both.step()
        both.check()


@check(2)
def modes_on_shards(ranks: Ranks) -> None:
    for options in MODES:
        both = Both(OPTIMIZERS[0], torch.bfloat16, **options)
        for _ in range(3):
            both.step()
        both.check()
    before = [whole(p).clone() for p in both.spread.parameters()]
    with both.optimizer.swap_ema(), both.reference.swap_ema():
        for p, q in zip(both.spread.parameters(), both.alone.parameters(), strict=True):
            assert_same_bits(whole(p), q, "an average")
    assert all(map(torch.equal, map(whole, both.spread.parameters()), before))
    for state in both.optimizer.to_torch_state_dict()["state"].values():
        assert state["exp_avg"].dtype == torch.float32
        assert isinstance(state["exp_avg"], DTensor)


@check(2, 3)
def modes_saved_by_two_loaded_by_three(ranks: Ranks) -> None:
    for i, options in enumerate(MODES):
        both = Both(OPTIMIZERS[0], torch.bfloat16, **options)
        path = ranks.folder / f"mode-{i}"
        for _ in range(2):
            both.set_gradients()
            both.reference.step()
            if ranks.world == 2:
                both.optimizer.step()
        if ranks.world == 2:
            states = get_state_dict(both.spread, both.optimizer)
            dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=path)
        else:
            both.spread.zero_grad()
            load(path, both.spread, both.optimizer)
        both.check()
        both.step()
        both.check()


def through_files(
    model: nn.Module, optimizer: Any, other: nn.Module, loading: Any, path: Path
) -> None:
    """torchtitan's way: flattened, and loaded into what the new optimizer has."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    saved = dict(zip("mo", get_state_dict(model, optimizer, options=options), strict=True))
    dcp.save(saved, checkpoint_id=path)
    found = dict(zip("mo", get_state_dict(other, loading, options=options), strict=True))
    dcp.load(found, checkpoint_id=path)
    set_model_state_dict(other, found["m"], options=options)
    set_optimizer_state_dict(other, loading, found["o"], options=options)


def through_rank_0(
    model: nn.Module, optimizer: Any, other: nn.Module, loading: Any, path: Path
) -> None:
    """Gathered whole, and sent to all ranks by the one that has it."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    of_model, of_optimizer = deepcopy(
        (
            get_model_state_dict(model, options=options),
            get_optimizer_state_dict(model, optimizer, options=options),
        )
    )
    if torch.distributed.get_rank() > 0:
        of_model, of_optimizer = {}, {}
    set_model_state_dict(other, of_model, options=options)
    set_optimizer_state_dict(other, loading, of_optimizer, options=options)


@check(2)
def remainders_and_narrow_state_go_through_collectives(ranks: Ranks) -> None:
    """Neither gloo nor NCCL sends int16; FSDP1 sends no integers, and one dtype a parameter."""
    narrow = {"state_dtype": torch.bfloat16, "ema_decay": 0.9}
    remainder, correction = narrow | {"master": "remainder"}, narrow | {"master": "correction"}
    flat, slices = older(use_orig_params=False), older(use_orig_params=True)
    for case, (kind, wrap, way, options) in enumerate(
        (
            (fusedstep.AdamW, shard, through_rank_0, remainder),
            (fusedstep.AdamW, shard, through_files, remainder),
            (fusedstep.Adagrad, shard, through_files, remainder),
            (fusedstep.AdamW, flat, through_rank_0, remainder),
            (fusedstep.AdamW, slices, through_files, remainder),
            (fusedstep.AdamW, shard, through_rank_0, correction),
            (fusedstep.SGD, shard, through_files, correction),
            (fusedstep.AdamW, flat, through_rank_0, correction),
            (fusedstep.AdamW, slices, through_files, correction),
        )
    ):
        models = [wrap(make_model(torch.bfloat16)) for _ in range(2)]
        runs = [(model, kind(model.parameters(), **options)) for model in models]
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(ranks.rank))
        for step in range(4):
            for model, optimizer in runs[: 1 if step < 2 else 2]:
                model(x.bfloat16()).float().square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            if step == 1:
                way(*runs[0], *runs[1], ranks.folder / f"collectives-{case}")
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            assert_same_bits(local(q), local(p), "a parameter")
            states = runs[0][1].state[p], runs[1][1].state[q]
            assert states[0].keys() == states[1].keys()
            for name, value in states[0].items():
                assert_same_bits(local(states[1][name]), local(value), name)


@check(2)
def replicas_round_with_the_same_random_numbers(ranks: Ranks) -> None:
    """Stochastic rounding must not make replicas differ."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    values = torch.ones(500, dtype=torch.bfloat16)
    param = nn.Parameter(distribute_tensor(values, mesh, [Replicate()]))
    optimizer = fusedstep.AdamW(
        [param], lr=1e-3, stochastic_rounding=True, state_dtype=torch.bfloat16
    )
    for _ in range(3):
        param.grad = distribute_tensor(values, mesh, [Replicate()])
        optimizer.step()
    assert_same_on_all_ranks(param.to_local(), "the parameter")
    assert_same_on_all_ranks(optimizer.state[param]["exp_avg"].to_local(), "exp_avg")
    assert len(param.to_local().unique()) > 1  # some elements were rounded up, some down
    other = fusedstep.AdamW([param], lr=1e-3, master="correction")
    for _ in range(3):
        other.step()
    correction = other.state[param]["correction"]
    assert correction.placements == param.placements
    assert_same_on_all_ranks(correction.to_local(), "the correction")
    assert len(correction.to_local().unique()) > 1


@check(2)
def codes_are_refused_of_slices_and_of_blocks_that_straddle_shards(ranks: Ranks) -> None:
    where = "param_groups[0]['params'][0]"
    for names in (False, True):
        params = older(use_orig_params=names)(make_model(torch.float32)).parameters()
        must = "be a plain tensor or a DTensor .* where state_dtype='int8'"
        with refuses("AdamW", where, must, "an FSDP1 slice", TypeError):
            fusedstep.AdamW(params, state_dtype="int8")
    mesh = init_device_mesh("cpu", (ranks.world,))
    must = "have shards of whole blocks of 128 elements where state_dtype='int8'"
    for shape, dim in (((6, 384), 1), ((6, 128), 1), ((4, 8, 4, 8), 2)):
        param = nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, [Shard(dim)]))
        got = rf"\({', '.join(map(str, shape))}\) with .*Shard.* on \({ranks.world},\)"
        with refuses("AdamW", where, must, got, ValueError):
            fusedstep.AdamW([param], state_dtype="int8")
        fusedstep.AdamW([param])


@check(2, 3)
def blocks_of_rows_round_as_in_one_process(ranks: Ranks) -> None:
    """Two matrices in one weight, the first of which is cut by the shards."""
    mesh = init_device_mesh("cpu", (ranks.world,))
    options = {
        "master": "correction", "state_dtype": torch.bfloat16, "split_sizes": (6, 3),
        "adjust_lr_fn": "spectral_unclamped",
    }  # fmt: skip
    values, *grads = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    alone, spread = nn.Parameter(values), nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
    both = [fusedstep.Muon([param], **options) for param in (alone, spread)]
    for grad in grads:
        alone.grad, spread.grad = grad, distribute_tensor(grad, mesh, [Shard(0)])
        for optimizer in both:
            optimizer.step()
    assert_same_bits(whole(spread), alone, "the parameter")
    for name, expected in both[0].state[alone].items():
        assert_same_bits(whole(both[1].state[spread][name]), expected, name)
