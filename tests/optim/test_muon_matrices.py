"""Matrices inside Muon's parameters: each has the bits that it has as a parameter of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fusedstep
from fusedstep.optim import normuon
from fusedstep.optim.matrices import Division
from fusedstep.optim.newton_schulz import orthogonalize_
from tests.reference.muon import MuonGroup, muon_descent
from tests.reference.quantize import round_to_24_bits_stochastically, split_in_24
from tests.reference.random import random16, random_array
from tests.support.modes import forward_copy
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    bounded,
    copies,
    laid_out,
    make_params,
    name_of,
    set_grads,
)

HALF = torch.bfloat16
RATIOS = {
    "original": lambda m, n: max(1, m / n) ** 0.5,
    "match_rms_adamw": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "spectral_unclamped": lambda m, n: (m / n) ** 0.5,
}
every_ratio = pytest.mark.parametrize("adjust_lr_fn", RATIOS)


class Case(NamedTuple):
    """A parameter, the entries of its group, and the rows of the matrices in it, in order."""

    shape: tuple[int, ...]
    entries: dict[str, Any]
    rows: list[int]

    def cut(self, tensor: Tensor) -> list[Tensor]:
        """The matrices by torch's reshape and split."""
        if self.entries.get("flatten"):
            order = sorted(range(1, tensor.dim()), key=lambda d: -tensor.stride()[d])
            tensor = tensor.permute(0, *order).reshape(len(tensor), -1)
        stack = tensor.reshape(-1, *tensor.shape[-2:])
        return [piece for matrix in stack for piece in matrix.split(self.rows)]


CASES = {
    "Q, K, V": Case((24, 8), {"split_sizes": (8, 8, 8)}, [8, 8, 8]),
    "grouped queries": Case((24, 16), {"split_sizes": (16, 4, 4), "num_heads": (4, 1, 1)}, [4] * 6),
    "heads": Case((24, 8), {"num_heads": 3}, [8, 8, 8]),
    "heads of pieces": Case((24, 5), {"split_sizes": [16, 8], "num_heads": 2}, [8, 8, 4, 4]),
    "unequal": Case((20, 6), {"split_sizes": (12, 5, 3)}, [12, 5, 3]),
    "experts": Case((3, 8, 16), {}, [8]),
    "gated experts": Case((3, 20, 6), {"split_sizes": (12, 8)}, [12, 8]),
    "a stack of stacks": Case((2, 3, 6, 5), {"flatten": False, "num_heads": 2}, [3, 3]),
    "a convolution": Case((8, 3, 3, 2), {"flatten": True}, [8]),
    "unequal convolutions": Case((20, 2, 3), {"flatten": True, "split_sizes": (16, 4)}, [16, 4]),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
UNEQUAL = {name: CASES[name] for name in CASES if "equal" in name or "gated" in name}
every_unequal = pytest.mark.parametrize("case", UNEQUAL.values(), ids=UNEQUAL)


class Pair:
    """Muon over whole parameters, and Muon over their matrices as parameters of their own."""

    def __init__(self, case: Case, params: list[Tensor], **options: Any) -> None:
        self.case, self.params = case, params
        self.pieces = [
            [piece.detach().clone().requires_grad_() for piece in case.cut(p)] for p in params
        ]
        flat = [piece for pieces in self.pieces for piece in pieces]
        self.ours = fusedstep.Muon(params, **{"lr": 0.05} | options, **case.entries)
        self.apart = fusedstep.Muon(flat, **{"lr": 0.05} | options)

    def step(self, seed: int, missing: tuple[int, ...] = ()) -> None:
        set_grads(self.params, seed=seed)
        for i, (param, pieces) in enumerate(zip(self.params, self.pieces, strict=True)):
            if i in missing:
                param.grad = None
            for piece, grad in zip(pieces, self.grads_of(param, pieces), strict=True):
                piece.grad = grad
        self.ours.step()
        self.apart.step()

    def grads_of(self, param: Tensor, pieces: list[Tensor]) -> list[Tensor | None]:
        if param.grad is None:
            return [None] * len(pieces)
        return [grad.clone() for grad in self.case.cut(param.grad)]

    def check(self) -> None:
        for i, (param, pieces) in enumerate(zip(self.params, self.pieces, strict=True)):
            for k, (mine, piece) in enumerate(zip(self.case.cut(param), pieces, strict=True)):
                assert_same_bits(mine.detach(), piece.detach(), f"matrix {k} of params[{i}]")
            for name, value in self.ours.state[param].items():
                for k, mine in enumerate(self.case.cut(value)):
                    other = self.apart.state[pieces[k]][name]
                    assert_same_bits(mine, other, f"{name} of matrix {k} of params[{i}]")


@every_ratio
@every_case
def test_each_matrix_has_the_bits_of_a_parameter(case: Case, adjust_lr_fn: str) -> None:
    pair = Pair(case, make_params(case.shape, case.shape), adjust_lr_fn=adjust_lr_fn)
    for seed in range(3):
        pair.step(seed)
        pair.check()


@every_case
def test_each_matrix_has_the_moments_of_a_parameter(case: Case) -> None:
    options = {"adjust_lr_fn": "spectral_unclamped", "normuon_beta2": 0.9}
    pair = Pair(case, make_params(case.shape, case.shape), **options)
    for seed in range(3):
        pair.step(seed)
        pair.check()


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case
def test_any_layouts(case: Case, layout: str) -> None:
    params = [
        laid_out(p.detach(), layout).requires_grad_() for p in make_params(case.shape, case.shape)
    ]
    pair = Pair(case, params, adjust_lr_fn="spectral_unclamped", ema_decay=0.5)
    for seed in range(3):
        pair.step(seed)
        pair.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@every_unequal
def test_any_dtypes(case: Case, dtype: torch.dtype) -> None:
    pair = Pair(case, make_params(case.shape, dtype=dtype), adjust_lr_fn="spectral_unclamped")
    for seed in range(3):
        pair.step(seed)
        pair.check()


@pytest.mark.parametrize("layout", ["plain", "reversed"])
@pytest.mark.parametrize("master", ["float32", "remainder"])
@every_unequal
def test_masters_and_averages(case: Case, master: str, layout: str) -> None:
    values = make_params(case.shape, case.shape, dtype=HALF)
    params = [laid_out(p.detach(), layout).requires_grad_() for p in values]
    options = {"master": master, "ema_decay": 0.5, "adjust_lr_fn": "spectral_unclamped"}
    pair = Pair(case, params, **options)
    for seed in range(3):
        pair.step(seed)
        pair.check()


@pytest.mark.parametrize("layout", ["plain", "reversed"])
def test_gradients_that_come_and_go(layout: str) -> None:
    case = CASES["unequal"]
    values = make_params(*[case.shape] * 3)
    params = [laid_out(p.detach(), layout).requires_grad_() for p in values]
    pair = Pair(case, params, adjust_lr_fn="spectral_unclamped", ema_decay=0.5)
    for seed, missing in enumerate([(), (), (1,), (1,), (0, 1), (), (0, 1, 2), (2,)]):
        pair.step(seed, missing)
        pair.check()


def test_entries_may_change_between_steps() -> None:
    """So do the ratios, and with them the rows that are moved together."""
    case = CASES["unequal"]
    pair = Pair(case, make_params(case.shape, case.shape), ema_decay=0.5)
    for seed, adjust_lr_fn in enumerate([None, "spectral_unclamped", "match_rms_adamw", None]):
        for optimizer in (pair.ours, pair.apart):
            optimizer.param_groups[0]["adjust_lr_fn"] = adjust_lr_fn
        pair.step(seed)
        pair.check()
    other = Case(case.shape, {"split_sizes": (10, 10)}, [10, 10])
    again = Pair(other, copies(pair.params), ema_decay=0.5)
    for param, pieces in zip(pair.params, again.pieces, strict=True):
        values = {name: other.cut(value) for name, value in pair.ours.state[param].items()}
        for k, piece in enumerate(pieces):
            again.apart.state[piece] = {name: of[k].clone() for name, of in values.items()}
    pair.ours.param_groups[0]["split_sizes"] = [10, 10]
    pair.case, pair.pieces, pair.apart = other, again.pieces, again.apart
    pair.step(9)
    pair.check()


def test_groups_divide_their_parameters_differently() -> None:
    cases = [CASES["unequal"], CASES["heads"], CASES["gated experts"]]
    together = make_params(*[case.shape for case in cases])
    groups = [{"params": [p], **case.entries} for p, case in zip(together, cases, strict=True)]
    ours = fusedstep.Muon(groups, adjust_lr_fn="spectral_unclamped", lr=0.05)
    pieces = [
        piece.detach().clone().requires_grad_()
        for param, case in zip(together, cases, strict=True)
        for piece in case.cut(param)
    ]
    apart = fusedstep.Muon(pieces, adjust_lr_fn="spectral_unclamped", lr=0.05)
    for seed in range(3):
        set_grads(together, seed=seed)
        grads = [g for p, c in zip(together, cases, strict=True) for g in c.cut(p.grad)]
        for piece, grad in zip(pieces, grads, strict=True):
            piece.grad = grad.clone()
        ours.step()
        apart.step()
    mine = [piece for p, case in zip(together, cases, strict=True) for piece in case.cut(p)]
    for actual, expected in zip(mine, pieces, strict=True):
        assert_same_bits(actual.detach(), expected.detach())


# --- modes whose bits depend on where an element lies in its parameter ----------------------------


def directions(optimizer: fusedstep.Muon) -> list[Tensor]:
    """What the first pass of the last step wrote."""
    (table,) = optimizer._internals.tables.values()
    return [table._directions[p] for p in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize("state_dtype", [HALF, "int8"], ids=["bfloat16", "int8"])
@every_case
def test_momentum_of_fewer_bits(
    case: Case, state_dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Momentum and directions are those of whole parameters; then come the matrices."""
    params = make_params(case.shape, case.shape)
    options = {"state_dtype": state_dtype, "lr": 0.05, "seed": 3, "weight_decay": 0.1}
    whole = {"flatten": False} if len(case.shape) > 3 else {}
    ours = fusedstep.Muon(params, **options, **case.entries, adjust_lr_fn="spectral_unclamped")
    plain = fusedstep.Muon(copies(params), **options, **whole)
    group = MuonGroup(lr=0.05)
    for seed in range(3):
        before = [case.cut(param.detach().clone()) for param in params]
        for optimizer in (ours, plain):
            set_grads(optimizer.param_groups[0]["params"], seed=seed)
        with monkeypatch.context() as patch:
            patch.setattr(normuon, "orthogonalize_", lambda *_: None)
            plain.step()
        ours.step()
        for i, (direction, old) in enumerate(zip(directions(plain), before, strict=True)):
            twin = plain.param_groups[0]["params"][i]
            for name, value in plain.state[twin].items():
                assert_same_bits(ours.state[params[i]][name], value, name)
            matrices = [piece.clone() for piece in case.cut(direction)]
            orthogonalize_(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
            for mine, value, step in zip(case.cut(params[i]), old, matrices, strict=True):
                ratio = RATIOS["spectral_unclamped"](*value.shape)
                moved = muon_descent(value.numpy(), step.float().numpy(), ratio, group)
                assert_same_bits(mine.detach(), torch.from_numpy(moved))


@pytest.mark.parametrize("case", [CASES["Q, K, V"], CASES["unequal"]], ids=["equal", "unequal"])
def test_corrections_are_rounded_where_the_elements_are_listed(case: Case) -> None:
    """In the order of a parameter, or of each block of rows with a ratio of its own."""
    params = make_params(case.shape, case.shape, dtype=HALF)
    options = {"lr": 0.05, "seed": 3, "adjust_lr_fn": "spectral_unclamped", **case.entries}
    ours = fusedstep.Muon(params, master="correction", **options)
    exact = fusedstep.Muon(copies(params), master="float32", **options)
    blocks = case.rows if len(set(case.rows)) > 1 else [sum(case.rows)]
    for step in range(3):
        twins = exact.param_groups[0]["params"]
        for optimizer in (ours, exact):
            set_grads(optimizer.param_groups[0]["params"], seed=step)
            optimizer.step()
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            master = exact.state[q]["master"]
            for part, correction, wide in zip(
                p.detach().split(blocks), ours.state[p]["correction"].split(blocks),
                master.split(blocks), strict=True,
            ):  # fmt: skip
                random = random16(3, random_array(i, 0), step + 2, 0, part.numel()) & 0xFF
                value = round_to_24_bits_stochastically(wide.flatten().numpy(), random)
                nearest, bits = split_in_24(value)
                assert_same_bits(part.view(torch.int16).flatten(),
                                 torch.from_numpy(nearest).view(torch.int16))  # fmt: skip
                assert_same_bits(correction.flatten(), torch.from_numpy(bits))
                wide.copy_(torch.from_numpy(value).view(wide.shape))  # where both go on from
            q.data.copy_(master)
            assert_same_bits(p.detach(), forward_copy("remainder", master))


@pytest.mark.parametrize("layout", ["plain", "reversed"])
def test_a_skipped_step_leaves_no_trace(layout: str) -> None:
    case = CASES["unequal"]
    params = [laid_out(p.detach(), layout).requires_grad_() for p in make_params(case.shape)]
    options = {"nonfinite": "skip", "adjust_lr_fn": "spectral_unclamped", "ema_decay": 0.5}
    ours = fusedstep.Muon(params, **options, **case.entries)
    for seed in range(3):
        set_grads(params, seed=seed)
        if seed == 1:
            params[0].grad[0, 0] = torch.nan
            before = [params[0].detach().clone()]
            before += [value.clone() for value in ours.state[params[0]].values()]
        ours.step()
        if seed == 1:
            for value, old in zip(
                [params[0].detach(), *ours.state[params[0]].values()], before, strict=True
            ):
                assert_same_bits(value, old)


# --- the function itself --------------------------------------------------------------------------


@st.composite
def divided(draw: Callable[[Any], Any]) -> tuple[tuple[int, ...], dict[str, Any], list[int]]:
    """A shape, the entries of its group, and the rows of each matrix."""
    pieces = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3))
    rows, columns = sum(heads * each for heads, each in pieces), draw(st.integers(1, 5))
    flatten = draw(st.booleans())
    more = draw(st.lists(st.integers(1, 3), max_size=2))
    shape = (rows, *more, columns) if flatten else (*more, rows, columns)
    entries = {
        "split_sizes": tuple(heads * each for heads, each in pieces),
        "num_heads": tuple(heads for heads, _ in pieces),
        "flatten": flatten,
    }
    return shape, entries, [each for heads, each in pieces for _ in range(heads)]


@bounded
@given(divided())
def test_views_hold_each_element_once(given: tuple[Any, ...]) -> None:
    shape, entries, rows = given
    tensor = torch.arange(float(torch.Size(shape).numel())).view(shape)
    matrices = Division.of(entries).matrices(tensor)
    assert [len(matrix) for matrix in matrices] == rows * (len(matrices) // len(rows))
    assert torch.equal(torch.cat([matrix.flatten() for matrix in matrices]), tensor.flatten())
    for matrix in matrices:
        assert matrix.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_empty_matrices_step() -> None:
    params = make_params((0, 4), (3, 0, 4), (3, 4, 0), (0, 4, 4))
    for ratio in RATIOS:
        optimizer = fusedstep.Muon(params, adjust_lr_fn=ratio, num_heads=2, max_norm=1.0)
        set_grads(params)
        optimizer.step()


def test_a_list_is_not_read_again_at_every_step() -> None:
    params = make_params((24, 8))
    optimizer = fusedstep.Muon([{"params": params, "split_sizes": [16, 8], "num_heads": [2, 1]}])
    steps = []
    for seed in range(2):
        set_grads(params, seed=seed)
        optimizer.step()
        steps.append(optimizer._internals.step)
    assert steps[0] is steps[1]
