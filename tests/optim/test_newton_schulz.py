"""The orthogonalization: against float64 and torch's, by blocks, in batches, with few products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as zeropower

from fusedstep.optim import newton_schulz
from fusedstep.optim.newton_schulz import Cpu, Plan, orthogonalize_
from tests.support.newton_schulz import COEFFICIENTS, EPS, SPECTRA, distance, exact, matrix_of
from tests.support.tensors import (
    DTYPES,
    LAYOUTS,
    assert_same_bits,
    laid_out,
    make_params,
    name_of,
)

SHAPES = [(8, 16), (64, 64), (16, 8), (8, 16), (33, 17), (1, 5), (5, 1), (64, 64), (1, 1), (8, 16)]
WIDE, NARROW = torch.float32, torch.bfloat16
WAYS = {
    "one by one": Plan(NARROW, 0, [1] * 5),
    "one by one, halves": Plan(NARROW, 1, [1] * 5),
    "one by one, quarters": Plan(NARROW, 2, [1] * 5),
    "one by one, float32": Plan(WIDE, 1, [1] * 5),
    "one by one, tiles": Plan(NARROW, 0, [1] * 5, tiled=True),
    "pairs": Plan(NARROW, 0, [2, 2, 1], NARROW),
    "pairs, tiles": Plan(NARROW, 0, [2, 2, 1], NARROW, tiled=True),
    "pairs, quarters": Plan(NARROW, 2, [2, 2, 1], NARROW),
    "together": Plan(NARROW, 2, [5], WIDE),
    "together, float32": Plan(WIDE, 0, [5], WIDE),
}


def matrices(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [param.detach() for param in make_params(*SHAPES, dtype=dtype)]


def orthogonal(of: list[Tensor], steps: int = 5, **options: int) -> list[Tensor]:
    """New matrices in place of `of`."""
    result = [torch.empty_like(matrix).copy_(matrix) for matrix in of]
    orthogonalize_(result, COEFFICIENTS, steps, EPS, **options)
    return result


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_is_close_to_torchs(dtype: torch.dtype, steps: int) -> None:
    of = matrices(dtype)
    for matrix, actual in zip(of, orthogonal(of, steps), strict=True):
        assert actual.dtype == dtype
        assert (
            distance(actual, zeropower(matrix.clone(), COEFFICIENTS, steps, EPS)) <= 0.04
        )  # its own error


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_is_close_to_exact_arithmetic(steps: int, device: torch.device) -> None:
    of = [matrix.to(device) for matrix in matrices()]
    tolerance = 1e-4 if device.type == "cpu" else 0.05  # float32 for small ones, or bfloat16
    for matrix, actual in zip(of, orthogonal(of, steps), strict=True):
        assert distance(actual, exact(matrix, steps=steps)) <= tolerance


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(96, 96), (96, 400), (130, 70), (24, 48)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_as_accurate_as_torchs(
    way: str, shape: tuple[int, int], spectrum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton_schulz, "_plan", lambda *_: WAYS[way])
    matrix = matrix_of(spectrum, *shape)
    expected = exact(matrix)
    torchs = distance(zeropower(matrix.clone(), COEFFICIENTS, 5, EPS), expected)
    # bfloat16 alone rounds by up to 0.004.
    limit = 0.004 if "float32" in way else max(1.5 * torchs, 0.045)
    assert distance(orthogonal([matrix])[0], expected) <= limit


@pytest.mark.parametrize("coefficients", [COEFFICIENTS, (2.0, -1.5, 0.5), (0.9, 0.1, 0.0)])
@pytest.mark.parametrize("steps", [1, 6, 12])
def test_no_number_of_steps_and_no_coefficients_make_it_diverge(
    steps: int, coefficients: tuple[float, float, float]
) -> None:
    for shape in ((20, 900), (300, 100)):
        matrix = matrix_of("low rank", *shape)
        expected = exact(matrix, coefficients, steps)
        theirs = zeropower(matrix.clone(), coefficients, steps, EPS)
        actual = matrix.clone()
        orthogonalize_([actual], coefficients, steps, EPS)
        assert distance(actual, expected) <= max(1.5 * distance(theirs, expected), 0.045)


def test_makes_well_conditioned_matrices_nearly_orthogonal() -> None:
    values = torch.linalg.svdvals(torch.stack(orthogonal([torch.eye(6) + 0.1 * torch.ones(6, 6)])))
    assert (values > 0.6).all()
    assert (values < 1.3).all()


def test_global_switches_have_no_effect() -> None:
    of = [matrix_of("low rank", 60, 250).float()]
    expected = orthogonal(of)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            actual = orthogonal(of)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same_bits(actual[0], expected[0])


# --- the number of products -----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("m", [4, 7, 13, 64])
def test_a_product_by_blocks_is_the_product(m: int, depth: int) -> None:
    A, plan = torch.arange(float(m * 5)).reshape(m, 5) % 7, Plan(WIDE, depth, [])
    gram = A @ A.mT
    assert_same_bits(newton_schulz._symmetric(A, A, plan), gram)
    expected = 2 * gram @ gram + 3 * gram
    assert_same_bits(newton_schulz._symmetric(gram, gram, plan, gram, 3.0, 2.0), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("m", "n"), [(64, 64), (64, 192)])
def test_multiplications_are_those_of_the_formula(
    m: int, n: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton_schulz, "_plan", lambda *_: WAYS[way])
    plan, seen = WAYS[way], Multiplications()
    with seen:
        orthogonal([torch.ones(m, n)])
    share = (1 + (newton_schulz.TILE / m if plan.tiled else 0.5**plan.depth)) / 2
    expected = sum((share + 1) * m * m * n + share * (4 * k - 3) * m**3 for k in plan.spans)
    assert seen.count == expected


CPUS = {
    "plain": Cpu(1.0, False),
    "AVX512_BF16": Cpu(2.0, True),
    "AMX": Cpu(8.0, False),
}


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("cpu", CPUS.values(), ids=CPUS)
def test_the_plan_is_the_cheapest(cpu: Cpu, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton_schulz, "_cpu", lambda: cpu)
    plan_of = newton_schulz._plan.__wrapped__
    for m, n in [(1, 1), (64, 256), (100, 100), (256, 512), (768, 768), (768, 3072), (64, 9000)]:
        plan = plan_of(m, n, 5, COEFFICIENTS[0], "cpu", threads)
        assert sum(plan.spans) == 5
        cost = newton_schulz._cost(plan, m, n, threads, cpu.price)
        for dtype in (WIDE, NARROW) if cpu.price > 1 else (WIDE,):
            other = plan._replace(dtype=dtype, spans=[1] * 5)
            assert cost <= newton_schulz._cost(other, m, n, threads, cpu.price)
        assert plan.tiled == cpu.tiles
        assert plan_of(m, n, 5, COEFFICIENTS[0], "cuda", threads) == Plan(NARROW, 0, [1] * 5)


def test_small_matrices_and_cpus_without_bfloat16_take_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan_of = newton_schulz._plan.__wrapped__
    for cpu in CPUS.values():
        monkeypatch.setattr(newton_schulz, "_cpu", lambda cpu=cpu: cpu)
        for m, n in [(1, 1), (32, 32), (1024, 1024)]:
            plan = plan_of(m, n, 5, COEFFICIENTS[0], "cpu", 1)
            assert (plan.dtype == WIDE) == (m <= 32 or cpu.price == 1.0)


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_is_its_matrices_one_by_one() -> None:
    of = matrices()
    alone = [orthogonal([matrix])[0] for matrix in of]
    for max_elements in (2**26, 300, 1):  # batches of any size, of a few matrices, of one each
        for i, actual in enumerate(orthogonal(of, max_elements=max_elements)):
            assert distance(actual, alone[i]) <= 0.02


def test_a_batch_is_of_one_shape_and_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    together = newton_schulz._together

    def counted(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        result = together(tensors, dtype)
        seen.append(tuple(result.shape))
        return result

    monkeypatch.setattr(newton_schulz, "_together", counted)
    orthogonal(matrices(), max_elements=256)
    assert seen[:3] == [(2, 8, 16), (8, 16), (64, 64)]
    assert sum(shape[0] if len(shape) == 3 else 1 for shape in seen) == len(SHAPES)
    seen.clear()
    orthogonal(matrices())
    assert len(seen) == len(set(SHAPES))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_any_layout(layout: str) -> None:
    of = matrices()
    expected = orthogonal(of)
    actual = [laid_out(matrix.clone(), layout) for matrix in of]
    orthogonalize_(actual, COEFFICIENTS, 5, EPS)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


def test_nothing_and_zeros_stay_what_they_are() -> None:
    of = [torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(3, 3), torch.zeros(0, 0)]
    for actual, matrix in zip(orthogonal(of), of, strict=True):
        assert_same_bits(actual, matrix)
    orthogonalize_([], COEFFICIENTS, 5, EPS)


def test_the_rest_of_a_batch_is_unaffected_by_a_matrix_that_is_not_finite() -> None:
    of = matrices()
    expected = orthogonal(of)
    of[0][0, 0] = torch.nan
    actual = orthogonal(of)
    assert actual[0].isnan().all()
    for a, b in zip(actual[1:], expected[1:], strict=True):
        assert distance(a, b) <= 0.02


def test_eps_is_the_smallest_norm_divided_by() -> None:
    (tiny,) = matrix = [torch.full((2, 2), 2.0**-30)]
    orthogonalize_(matrix, COEFFICIENTS, 0, 2.0**-20)
    assert_same_bits(tiny, torch.full((2, 2), 2.0**-10))


class Multiplications(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts those of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            A, B = args[-2:]
            self.count += A.numel() * B.size(1)
        elif function is newton_schulz._SYMMETRIC:
            A, tiles = args[0], len(args[0]) // newton_schulz.TILE
            self.count += tiles * (tiles + 1) // 2 * newton_schulz.TILE**2 * A.size(1)
        return function(*args, **(kwargs or {}))
