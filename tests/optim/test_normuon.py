"""NorMuon: rows divided by the roots of their second moments, against float64; state and skips."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fusedstep
from fusedstep.optim.batches import Item
from fusedstep.optim.exchange import Exchange
from fusedstep.optim.matrices import Division
from fusedstep.optim.newton_schulz import Iteration
from fusedstep.optim.normuon import Moments
from tests.reference.normuon import normalize_rows
from tests.support.optimizers import assert_same_run, params_of
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    copies,
    laid_out,
    make_params,
    name_of,
    set_grads,
)

MOMENT = "second_momentum_buffer"
BETA2 = 0.9
RATE = 0.5
DIVISIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "wide": ((8, 16), {}),
    "tall": ((33, 17), {}),
    "one row": ((1, 5), {}),
    "one column": ((5, 1), {}),
    "pieces and heads": ((24, 8), {"split_sizes": (16, 4, 4), "num_heads": (2, 1, 1)}),
    "experts": ((3, 20, 6), {"split_sizes": (12, 8)}),
    "a convolution": ((8, 3, 3, 2), {"flatten": True, "num_heads": 2}),
}
every_division = pytest.mark.parametrize(
    ("shape", "entries"), DIVISIONS.values(), ids=DIVISIONS.keys()
)


def columns_of(moment: Tensor, entries: dict[str, Any]) -> list[np.ndarray]:
    """The moments of each matrix."""
    sizes = [len(matrix) for matrix in Division(**entries).matrices(moment)]
    return [part.numpy().copy() for part in moment.flatten().double().split(sizes)]


class Both:
    """Muon with and without moments. From 0, a step is along what was orthogonalized."""

    def __init__(self, params: list[Tensor], entries: dict[str, Any], **options: Any) -> None:
        self.params, self.twins = params, copies(params)
        self.entries, self.moments = entries, {}
        options = {"lr": RATE, "adjust_lr_fn": "match_rms_adamw"} | options | entries
        self.ours = fusedstep.Muon(params, normuon_beta2=BETA2, **options)
        self.plain = fusedstep.Muon(self.twins, **options)

    def step(self, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """For each matrix, it and its moments, and those that are expected."""
        for params, optimizer in ((self.params, self.ours), (self.twins, self.plain)):
            set_grads(params, seed=seed)
            for param in params:
                param.data.zero_()
            optimizer.step()
        found = []
        for i, (param, twin) in enumerate(zip(self.params, self.twins, strict=True)):
            of = Division(**self.entries)
            mine, others = of.matrices(param.detach()), of.matrices(twin.detach())
            moments = columns_of(self.ours.state[param][MOMENT], self.entries)
            for k, (matrix, other, moment) in enumerate(zip(mine, others, moments, strict=True)):
                size = -RATE * 0.2 * math.sqrt(max(matrix.shape))
                old = self.moments.get((i, k), np.zeros(len(matrix)))
                orthogonal = (other.double() / size).numpy()
                expected, new = normalize_rows(orthogonal, old, BETA2)
                self.moments[i, k] = new
                found.append(((matrix.double() / size).numpy(), moment, expected, new))
        return found


@pytest.mark.parametrize("layout", LAYOUTS)
@every_division
def test_is_the_formula_in_float64(
    shape: tuple[int, ...], entries: dict[str, Any], layout: str
) -> None:
    values = make_params(shape, shape, dtype=torch.float64)
    params = [laid_out(p.detach(), layout).requires_grad_() for p in values]
    both = Both(params, entries)
    for seed in range(4):
        for actual, moment, expected, new in both.step(seed):
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(moment, new, rtol=1e-12)
            assert np.isclose(np.linalg.norm(actual), np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@every_division
def test_is_close_to_it_in_every_dtype(
    shape: tuple[int, ...], entries: dict[str, Any], dtype: torch.dtype
) -> None:
    """Directions are bfloat16, before and after: each element is rounded twice, and stored."""
    both = Both(make_params(shape, dtype=dtype), entries)
    for seed in range(3):
        for actual, moment, expected, new in both.step(seed):
            np.testing.assert_allclose(actual, expected, rtol=0.02, atol=0.002)
            np.testing.assert_allclose(moment, new, rtol=0.02)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {state[MOMENT].dtype for state in both.ours.state.values()} == {wide}


def test_rows_come_to_move_equally_far() -> None:
    """With constant gradients, each row of the direction has the same norm in the end."""
    params = make_params((16, 8))
    optimizer = fusedstep.Muon(params, lr=1.0, weight_decay=0.0, normuon_beta2=0.5)
    plain = fusedstep.Muon(copies(params), lr=1.0, weight_decay=0.0)
    spreads = []
    for each in (optimizer, plain):
        (param,) = each.param_groups[0]["params"]
        for _ in range(20):
            set_grads([param])
            before = param.detach().clone()
            each.step()
        rows = (param.detach() - before).norm(dim=1)
        spreads.append(float(rows.max() / rows.min()))
    assert spreads[0] < 1.01 < 1.2 < spreads[1]


def test_weight_decay_is_muons() -> None:
    params = make_params((8, 16), (16, 8), dtype=torch.float64)
    start = [p.detach().clone() for p in params]
    options = {"lr": 0.1, "normuon_beta2": BETA2}
    decayed = fusedstep.Muon(params, weight_decay=0.5, **options)
    plain = fusedstep.Muon(copies(params), weight_decay=0.0, **options)
    for optimizer in (decayed, plain):
        set_grads(optimizer.param_groups[0]["params"])
        optimizer.step()
    for p, q, old in zip(params, plain.param_groups[0]["params"], start, strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.1 * 0.5 * old)


def test_groups_have_betas_of_their_own_or_none() -> None:
    params = make_params((8, 16), (8, 16), (8, 16))
    betas = (0.5, None, 0.9)
    groups = [{"params": [p], "normuon_beta2": b} for p, b in zip(params, betas, strict=True)]
    together = fusedstep.Muon(groups, lr=0.1)
    apart = [
        fusedstep.Muon(copies([p]), lr=0.1, normuon_beta2=b)
        for p, b in zip(params, betas, strict=True)
    ]
    for seed in range(3):
        set_grads(params, seed=seed)
        for param, optimizer in zip(params, apart, strict=True):
            (twin,) = optimizer.param_groups[0]["params"]
            twin.grad = param.grad.clone()
            optimizer.step()
        together.step()
    assert [MOMENT in together.state[p] for p in params] == [True, False, True]
    for param, optimizer in zip(params, apart, strict=True):
        (twin,) = optimizer.param_groups[0]["params"]
        torch.testing.assert_close(param, twin, rtol=0, atol=2e-3)  # another batch of products


def test_a_beta_may_change_between_steps() -> None:
    params = make_params((8, 16), dtype=torch.float64)
    optimizer = fusedstep.Muon(params, normuon_beta2=0.0)
    set_grads(params)
    optimizer.step()
    first = optimizer.state[params[0]][MOMENT].clone()
    optimizer.param_groups[0]["normuon_beta2"] = 0.75
    set_grads(params, seed=1)
    optimizer.step()
    second = optimizer.state[params[0]][MOMENT].clone()
    twins = copies(params)
    alone = fusedstep.Muon(twins, normuon_beta2=0.0)
    for seed in range(2):
        set_grads(twins, seed=seed)
        alone.step()
    last = alone.state[twins[0]][MOMENT]
    torch.testing.assert_close(second, 0.75 * first + 0.25 * last)


# --- what leaves the moments as they are ----------------------------------------------------------


@pytest.mark.parametrize("by", ["a norm", "a scaler"])
@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_a_skipped_step_leaves_them(by: str, first: bool) -> None:
    params = make_params((8, 16), (3, 12, 6))
    nonfinite = "skip" if by == "a norm" else "propagate"
    runs = [
        fusedstep.Muon(these, lr=0.1, nonfinite=nonfinite, normuon_beta2=BETA2)
        for these in (params, copies(params))
    ]
    for seed in range(3):
        for k, optimizer in enumerate(runs):
            these = optimizer.param_groups[0]["params"]
            if k == 0 and seed == (0 if first else 1):
                set_grads(these, seed=50)
                if by == "a norm":
                    these[1].grad[0, 0, 0] = math.nan
                else:
                    optimizer.found_inf = torch.tensor(1.0)
                optimizer.step()
                optimizer.found_inf = None
            set_grads(these, seed=seed)
            optimizer.step()
    assert_same_run(*runs)


def test_a_missing_gradient_leaves_them() -> None:
    params = make_params((8, 16), (8, 16), (4, 4))
    optimizer = fusedstep.Muon(params, lr=0.1, normuon_beta2=BETA2)
    for seed, missing in enumerate([(), (1,), (1,), (0, 2), (), (0, 1, 2), (2,)]):
        set_grads(params, seed=seed)
        for i in missing:
            params[i].grad = None
        absent = [params[i] for i in missing]
        kept, moments = Snapshot(absent, optimizer), [p for p in params if p.grad is not None]
        before = [optimizer.state.get(p, {}).get(MOMENT, torch.zeros(1)).clone() for p in moments]
        optimizer.step()
        kept.check()
        for param, old in zip(moments, before, strict=True):
            assert not torch.equal(optimizer.state[param][MOMENT], old.expand(len(param), 1))


def test_zero_gradients_stay_zero() -> None:
    params = make_params((8, 16))
    optimizer = fusedstep.Muon(params, weight_decay=0.0, normuon_beta2=BETA2)
    before = params[0].detach().clone()
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    assert_same_bits(params[0].detach(), before)
    assert not optimizer.state[params[0]][MOMENT].any()


def test_empty_matrices_step() -> None:
    params = make_params((0, 4), (4, 0), (3, 0, 4), (2, 2))
    optimizer = fusedstep.Muon(params, normuon_beta2=BETA2)
    for seed in range(2):
        set_grads(params, seed=seed)
        optimizer.step()
    assert [MOMENT in optimizer.state[p] for p in params] == [False, False, False, True]


# --- state ----------------------------------------------------------------------------------------


def stepped(**options: Any) -> fusedstep.Muon:
    """A Muon that has made a step over matrices, a stack, and one parameter of AdamW's."""
    matrices = make_params((8, 16), (3, 12, 6), dtype=torch.bfloat16)
    vectors = make_params((5,), dtype=torch.bfloat16)
    groups = [
        {"params": matrices, "num_heads": 2, "normuon_beta2": BETA2, **options},
        {"params": vectors, "use_muon": False},
    ]
    optimizer = fusedstep.Muon(groups, lr=0.1)
    step(optimizer, 0)
    return optimizer


def step(optimizer: fusedstep.Muon, seed: int) -> None:
    set_grads([p for group in optimizer.param_groups for p in group["params"]], seed=seed)
    optimizer.step()


MODES: list[dict[str, Any]] = [
    {},
    {"master": "remainder", "state_dtype": "int8"},
    {"master": "float32", "state_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", MODES, ids=["plain", "remainder", "float32"])
def test_a_checkpoint_continues_bit_for_bit(options: dict[str, Any]) -> None:
    first = stepped(**options)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    groups = [copies(group["params"]) for group in first.param_groups]
    second = fusedstep.Muon(
        [{"params": groups[0], **options}, {"params": groups[1], "use_muon": False}]
    )
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.param_groups[0]["normuon_beta2"] == BETA2
    for seed in range(1, 4):
        step(first, seed)
        step(second, seed)
    assert_same_run(second, first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue_on_their_own(copied: Callable[[Any], Any]) -> None:
    original = stepped()
    twin = copied(original)
    for seed in range(1, 3):
        step(original, seed)
    for seed in range(1, 3):
        step(twin, seed)
    assert_same_run(twin, original)


def test_torchs_checkpoint_is_without_them_and_leaves_the_entry() -> None:
    params = make_params((8, 16))
    optimizer = fusedstep.Muon(params, normuon_beta2=BETA2)
    step(optimizer, 0)
    exported = optimizer.to_torch_state_dict()
    assert set(exported["state"][0]) == {"momentum_buffer"}
    assert "normuon_beta2" not in exported["param_groups"][0]
    other = torch.optim.Muon(copies(params))
    other.load_state_dict(exported)
    optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["normuon_beta2"] == BETA2
    step(optimizer, 1)
    assert optimizer.state[params[0]][MOMENT].shape == (8, 1)


def test_momentum_of_a_muon_without_them_is_saved_with_zeros() -> None:
    """As the next step would make them: a checkpoint that lacks them has lost them."""
    shapes = ((8, 16), (3, 12, 6), (0, 4), (4, 4))
    muon = fusedstep.Muon(make_params(*shapes, dtype=torch.bfloat16))
    set_grads(params_of(muon)[:3])
    muon.step()
    optimizer = fusedstep.Muon(copies(params_of(muon)), normuon_beta2=BETA2)
    optimizer.load_state_dict(muon.to_torch_state_dict())
    assert all(MOMENT not in state for state in optimizer.state.values())
    saved = optimizer.state_dict()["state"]
    found = {key: entries[MOMENT] for key, entries in saved.items() if MOMENT in entries}
    assert {key: tuple(moment.shape) for key, moment in found.items()} == {0: (8, 1), 1: (3, 12, 1)}
    for moment in found.values():
        assert_same_bits(moment, torch.zeros_like(moment, dtype=torch.float32))
    assert all(MOMENT not in state for state in optimizer.state.values())
    resumed = fusedstep.Muon(copies(params_of(optimizer)), normuon_beta2=BETA2)
    resumed.load_state_dict(optimizer.state_dict())
    for one in (optimizer, resumed):
        step(one, 1)
    assert_same_run(resumed, optimizer)
    lost = copy.deepcopy(optimizer.state_dict())
    del lost["state"][1][MOMENT]
    where = f"state of params[1]['{MOMENT}']"
    with refuses("Muon", where, "be present after a step", "None", ValueError):
        resumed.load_state_dict(lost)
    assert_same_run(resumed, optimizer)


def test_another_moment_in_the_state_is_seen() -> None:
    runs = []
    for replace in (False, True):
        params = make_params((8, 16))
        optimizer = fusedstep.Muon(params, normuon_beta2=BETA2)
        step(optimizer, 0)
        old = optimizer.state[params[0]][MOMENT]
        kept = old.clone()
        if replace:
            optimizer.state[params[0]][MOMENT] = old.double()
        step(optimizer, 1)
        assert torch.equal(old, kept) == replace
        runs.append(optimizer)
    assert_same_run(*runs)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "must", "got", "kind"),
    [
        (1.0, "be at least 0 and below 1", "1.0", ValueError),
        (-0.5, "be at least 0 and below 1", "-0.5", ValueError),
        ("0.9", "be a number", "str", TypeError),
        (True, "be a number", "bool", TypeError),
    ],
)
def test_wrong_betas(value: Any, must: str, got: str, kind: type[Exception]) -> None:
    params = make_params((8, 16))
    with refuses("Muon", "normuon_beta2", must, got, kind):
        fusedstep.Muon(params, normuon_beta2=value)
    optimizer = fusedstep.Muon(params)
    step(optimizer, 0)
    optimizer.param_groups[0]["normuon_beta2"] = value
    snapshot = Snapshot(params, optimizer)
    with refuses("Muon", "param_groups[0]['normuon_beta2']", must, got, kind):
        step(optimizer, 0)
    snapshot.check()


@pytest.mark.parametrize(
    ("moment", "must", "got", "kind"),
    [
        (torch.zeros(8), r"have shape \(8, 1\)", r"\(8,\)", ValueError),
        (torch.zeros(16, 1), r"have shape \(8, 1\)", r"\(16, 1\)", ValueError),
        (torch.zeros(8, 1, dtype=torch.int32), "be a floating.*", "torch.int32", TypeError),
        (3.0, "be a floating-point tensor", "float", TypeError),
    ],
)
def test_moments_that_do_not_fit(moment: Any, must: str, got: str, kind: type[Exception]) -> None:
    params = make_params((8, 16))
    optimizer = fusedstep.Muon(params, normuon_beta2=BETA2)
    step(optimizer, 0)
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][0][MOMENT] = moment
    where, before = f"state of params[0]['{MOMENT}']", copy.deepcopy(optimizer.state_dict())
    with refuses("Muon", where, must, got, kind):
        optimizer.load_state_dict(damaged)
    assert str(optimizer.state_dict()) == str(before)
    optimizer.state[params[0]][MOMENT] = moment
    snapshot = Snapshot(params, optimizer)
    with refuses("Muon", where, must, got, kind):
        optimizer.step()
    snapshot.check()


def test_moments_of_dtensors_lie_where_rows_do() -> None:
    """A checkpoint, or state left from before a parameter became one, is refused otherwise."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1, 1))
        placed, columns = (
            distribute_tensor(torch.ones(8, 4), mesh, [Shard(dim), Replicate()]).requires_grad_()
            for dim in (0, 1)
        )
        optimizer = fusedstep.Muon([placed, columns], normuon_beta2=BETA2)
        for param in (placed, columns):
            param.grad = torch.ones_like(param)
        optimizer.step()
        saved = optimizer.state_dict()
        moments = [saved["state"][i][MOMENT] for i in (0, 1)]
        assert [str(m.placements[0]) for m in moments] == ["S(0)", "R"]
        other = distribute_tensor(torch.ones(8, 1), mesh, [Shard(0), Shard(0)])
        for moment, must, got, kind in (
            (torch.ones(8, 1), "be a DTensor, as its parameter", "a plain tensor", TypeError),
            (other, "be placed as its parameter's rows, .*", ".*", ValueError),
        ):
            damaged, before = copy.deepcopy(saved), str(optimizer.state_dict())
            damaged["state"][0][MOMENT] = moment
            with refuses("Muon", f"state of params[0]['{MOMENT}']", must, got, kind):
                optimizer.load_state_dict(damaged)
            assert str(optimizer.state_dict()) == before
        params = make_params((8, 4))
        plain = fusedstep.Muon(params, normuon_beta2=BETA2)
        step(plain, 0)
        plain.param_groups[0]["params"][0] = placed
        plain.state[placed] = plain.state.pop(params[0])
        where, must = "state of params[0]['momentum_buffer']", "be a DTensor, as its parameter"
        snapshot = Snapshot([placed], plain)
        with refuses("Muon", where, must, "a plain tensor", TypeError):
            plain.step()
        snapshot.check()
    finally:
        distributed.destroy_process_group()


def by_cuda(to: list[Tensor], what: list[Tensor]) -> None:
    """As torch copies lists on a GPU: bfloat16 by way of float32, which leaves one NaN."""
    for one, other in zip(to, what, strict=True):
        real = other.is_floating_point()
        one.copy_(other.float().where(~other.isnan(), torch.nan) if real else other)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_moments_keep_every_word(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their low halves look like every bfloat16, 254 of which are NaNs."""
    if device == "cpu":
        monkeypatch.setattr(torch, "_foreach_copy_", by_cuda)
    backend = "gloo" if device == "cpu" else "nccl"
    store = distributed.HashStore()
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        mesh = DeviceMesh(device, [0])
        item = Item(
            torch.Size((2**16, 1)),
            (1, 1),
            (Replicate(),),
            Division(),
            Iteration((3.0, -4.0, 2.0), 5, 1e-7),
            beta2=1.0,
        )
        exchange = Exchange(mesh, mesh.get_group(), [item], torch.device(device), torch.bfloat16)
        words = torch.arange(2**16, dtype=torch.int32, device=device)
        moment = (words + 0x3F800000).view(torch.float32).view(-1, 1)  # 1 and more
        then = torch.zeros_like(moment)
        exchange.orthogonalize_([None], [Moments(moment, then, [], 0)])
        assert_same_bits(then, moment)
    finally:
        distributed.destroy_process_group()
