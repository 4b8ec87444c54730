"""The ops that decide about rank: their bits against the definition in NumPy; NaN; refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fusedstep.linalg.numerics import Verdict
from tests.reference.gram import gram_error
from tests.support.on_host import on_cpu
from tests.support.tensors import assert_same_bits, threads

certify, truncate_scale = torch.ops.fusedstep.certify, torch.ops.fusedstep.truncate_scale
LANES = 32


def sum_in_lanes(rows: list[np.ndarray]) -> float:
    """In the order of kernels/linalg/certificate.h: element j to lane j % 32; by halves."""
    lanes = np.zeros(LANES)
    for row in rows:
        for begin in range(0, len(row), LANES):
            part = row[begin : begin + LANES]
            lanes[: len(part)] += part
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def certificate(G, inverse, exists, atol, rtol, rows) -> tuple[int, int, float]:
    """Of one matrix, as the header says."""
    k = len(G)
    grams, inverses, traces = [], [], []
    for begin in range(0, k, LANES):
        strip = range(begin, min(begin + LANES, k))
        diagonal = np.array([G[i, i] for i in strip])
        left = sum_in_lanes([G[i, :i] ** 2 for i in strip])
        grams.append(2 * left + sum_in_lanes([diagonal**2]))
        inverses.append(sum_in_lanes([inverse[i] ** 2 for i in strip]))
        traces.append(sum_in_lanes([diagonal]))
    norm = np.sqrt(sum_in_lanes([np.array(grams)]))
    error = gram_error(rows, k)
    least = 1 / np.sqrt(sum_in_lanes([np.array(inverses)])) - error * norm
    largest, smallest = np.sqrt(norm), np.sqrt(max(least, 0))
    trace = sum_in_lanes([np.array(traces)])
    if not np.isfinite(trace):
        return Verdict.NOT_FINITE, 0, 0.0
    if exists and smallest > max(atol, rtol * largest) * (1 + 2.0**-48):
        return Verdict.CERTIFIED, k, smallest / largest
    length = np.sqrt(trace)
    blurred = max(atol, rtol * (length / np.sqrt(k))) < np.sqrt(error) * length
    return Verdict.BLURRED if blurred else Verdict.OPEN, 0, 0.0


def grams(batch: int, k: int, rows: int) -> tuple[Tensor, ...]:
    """Gram matrices of more and more singular X, without what is above the diagonal; inverses."""
    generator = torch.Generator().manual_seed(k)
    X = torch.randn(batch, rows, k, generator=generator, dtype=torch.float64)
    X[:, :, -1] *= 10.0 ** -torch.arange(batch)[:, None].double()
    G = X.mT @ X
    inverse = torch.linalg.pinv(G, hermitian=True, rtol=0.0)
    above = torch.full_like(G, math.nan).triu(1)
    exists = torch.arange(batch) != 2
    rtol = torch.full((batch,), 1e-5, dtype=torch.float64)
    rtol[-1] = 1e-9
    return torch.where(above.isnan(), above, G), inverse, exists, rtol * 0, rtol


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 70])
def test_certificates_have_the_bits_of_the_definition(k: int) -> None:
    rows = 2 * k
    arguments = grams(8, k, rows)
    wanted = [
        certificate(*(t[b].numpy() for t in arguments), rows) for b in range(len(arguments[0]))
    ]
    for count in (1, 3):
        with threads(count):
            verdict, rank, rcond = certify(*arguments, rows)
        assert verdict.tolist() == [w[0] for w in wanted]
        assert rank.tolist() == [w[1] for w in wanted]
        assert_same_bits(rcond, torch.tensor([w[2] for w in wanted], dtype=torch.float64))
    assert verdict[0] == Verdict.CERTIFIED
    assert k == 1 or {Verdict.OPEN, Verdict.BLURRED} <= set(verdict.tolist())


def test_what_is_not_finite_is_reported_and_affects_no_other() -> None:
    G, inverse, *others = grams(4, 5, 9)
    expected = certify(G, inverse, *others, 9)
    G[1, 4, 4], G[3, 0, 0] = math.nan, math.inf
    inverse[1] = math.nan
    inverse[0, 2, 2] = math.nan
    verdict, rank, rcond = certify(G, inverse, *others, 9)
    assert verdict.tolist() == [Verdict.OPEN, Verdict.NOT_FINITE, expected[0][2], 1]
    assert rank.tolist() == [0, 0, expected[1][2], 0]
    assert rcond.isfinite().all()


def truncation(values: Tensor, atol: Tensor, rtol: Tensor, rows: int) -> tuple[Tensor, ...]:
    """1 / values or zero, rank and rcond, by torch, whose square root may be off by a bit."""
    size = torch.from_numpy(np.sqrt(values.clamp(min=0).numpy())) if rows else values.abs()
    if rows:
        rtol = rtol.clamp(min=math.sqrt(gram_error(rows, values.shape[1])))
    largest = size.amax(-1)
    keep = size > torch.maximum(atol, rtol * largest)[:, None]
    smallest = torch.where(keep, size, math.inf).amin(-1)
    rcond = torch.where(keep.any(-1), smallest / largest, 0.0)
    return torch.where(keep, 1 / values, 0.0), keep.sum(-1), rcond


def spectra(batch: int, n: int, k: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n + k)
    values = torch.randn(batch, k, generator=generator, dtype=torch.float64)
    values[:, ::3] *= 1e-13
    values[0] = 0
    vectors = torch.randn(batch, n, k, generator=generator, dtype=torch.float64)
    rtol = torch.full((batch,), 1e-8, dtype=torch.float64)
    atol = torch.arange(batch).double() * 0.2
    return values, vectors, atol, rtol


@pytest.mark.parametrize("rows", [0, 50], ids=["values", "eigenvalues of a Gram matrix"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (40, 33), (9, 129)])
def test_truncation_has_the_bits_of_the_definition(n: int, k: int, rows: int) -> None:
    values, vectors, atol, rtol = spectra(6, n, k)
    inverse, rank, rcond = truncation(values, atol, rtol, rows)
    for given in (vectors, vectors.mT.contiguous().mT, vectors.expand(6, n, k)):
        with threads(3):
            found = truncate_scale(values, given, atol, rtol, rows)
        assert found[0].is_contiguous()
        assert_same_bits(found[0], vectors * inverse[:, None, :], "scaled")
        assert_same_bits(found[1], rank, "rank")
        assert_same_bits(found[2], rcond, "rcond")


def test_the_comparison_is_strict() -> None:
    values = torch.tensor([[1.0, 0.5, -0.75]], dtype=torch.float64)
    half = torch.full((1,), 0.5, dtype=torch.float64)
    scaled, rank, rcond = truncate_scale(values, torch.ones(1, 1, 3).double(), half * 0, half)
    assert scaled.tolist() == [[[1.0, 0.0, 1 / -0.75]]]
    assert rank.tolist() == [2]
    assert rcond.tolist() == [0.75]


@pytest.mark.parametrize("rows", [0, 50])
def test_nothing_is_kept_of_values_with_a_nan(rows: int) -> None:
    values, vectors, atol, rtol = spectra(4, 5, 6)
    expected = truncate_scale(values, vectors, atol, rtol, rows)
    values[2, 3] = math.nan
    found = truncate_scale(values, vectors, atol, rtol, rows)
    assert found[1][2] == found[2][2] == 0
    assert (found[0][2] == 0).all()
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a[[0, 1, 3]], b[[0, 1, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("k", [5, 70])
def test_the_cuda_ops_on_the_host_have_the_bits_of_the_cpu(on_simt, k: int) -> None:
    for op, arguments in (
        (certify, (*grams(5, k, 2 * k), 2 * k)),
        (truncate_scale, spectra(5, 9, k)),
    ):
        with on_cpu():
            expected = op(*arguments)
        for a, b in zip(op(*arguments), expected, strict=True):
            assert_same_bits(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 33, 300])
def test_a_gpu_has_the_bits_of_the_cpu(k: int) -> None:
    for op, arguments in (
        (certify, (*grams(9, k, 2 * k), 2 * k)),
        (truncate_scale, spectra(9, 5, k)),
    ):
        there = [t.cuda() if isinstance(t, Tensor) else t for t in arguments]
        for a, b in zip(op(*there), op(*arguments), strict=True):
            assert_same_bits(a, b)


def test_opcheck() -> None:
    opcheck(certify.default, (*grams(3, 4, 6), 6))
    opcheck(truncate_scale.default, (*spectra(3, 5, 4), 6))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t[0], "gram must have 3 dimensions, got float64 with shape .4, 4. "),
        (0, lambda t: t[:, :3].clone(), r"gram must have the shape \[3, 4, 4\], got .*\[3, 3, 4\]"),
        (0, lambda t: t.mT, "gram must be contiguous, got float64 with shape"),
        (0, lambda t: t[:, :0, :0], "gram must have columns, got float64 with shape .3, 0, 0. "),
        (1, lambda t: t.float(), "inverse must be a dense float64 tensor, got float32"),
        (1, lambda t: t[:2], r"inverse must have the shape \[3, 4, 4\], got .*\[2, 4, 4\]"),
        (2, lambda t: t.long(), "exists must be a dense bool tensor, got int64"),
        (
            3,
            lambda t: t[:1].expand(3),
            "atol must be contiguous, got float64 with shape .3. and strides .0. on cpu",
        ),
        (4, lambda t: t[:2], r"rtol must have the shape \[3\], got float64 with shape \[2\]"),
        (5, lambda n: 3, "count must be at least the width of gram, got 3"),
    ],
)
def test_certify_refuses(position: int, change, message: str) -> None:
    given = [*grams(3, 4, 6), 6]
    given[position] = change(given[position])
    with pytest.raises(RuntimeError, match=f"certify: {message}"):
        certify(*given)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t[0], "values must have 2 dimensions, got float64 with shape .4. "),
        (0, lambda t: t.float(), "values must be a dense float64 tensor, got float32"),
        (1, lambda t: t[0], "vectors must have 3 dimensions, got float64 with shape .5, 4. "),
        (1, lambda t: t[:, :, :2], r"vectors must have the shape \[3, 5, 4\], got .*\[3, 5, 2\]"),
        (1, lambda t: t.float(), "vectors must be a dense float64 tensor, got float32"),
        (1, lambda t: t[:, :0], "vectors must have rows, got float64 with shape .3, 0, 4. "),
        (2, lambda t: t[:2], r"atol must have the shape \[3\], got float64 with shape \[2\]"),
        (3, lambda t: t.float(), "rtol must be a dense float64 tensor, got float32"),
        (4, lambda n: -1, "gram_count must be 0 or more, got -1"),
    ],
)
def test_truncate_scale_refuses(position: int, change, message: str) -> None:
    given = [*spectra(3, 5, 4), 0]
    given[position] = change(given[position])
    with pytest.raises(RuntimeError, match=f"truncate_scale: {message}"):
        truncate_scale(*given)
