"""The last layer's CUDA ops, run on the host: the bits of the CPU's, and failed launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from fusedstep.lm_head import newton_components_recalculated
from tests.support.on_host import on_cpu
from tests.support.tensors import DTYPES, assert_same_bits, name_of

pytestmark = pytest.mark.slow

ops = torch.ops.fusedstep
WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)


def softmax_arguments(count: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = 4 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_segment_sums(on_simt: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 40, generator=generator).to(dtype)
    ids, order = torch.sort(torch.randint(7, (300,), generator=generator), stable=True)
    sums = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    expected = sums.clone()
    ops.segment_sum_(sums, rows, order, ids)
    with on_cpu():
        ops.segment_sum_(expected, rows, order, ids)
    assert_same_bits(sums, expected)


def test_least_squares(on_simt: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 12, generator=generator)
    tokens = torch.randint(30, (200,), generator=generator)

    def solve() -> Tensor:
        problem = fusedstep.lm_head.LeastSquares(12, 30)
        problem.update(hidden, tokens)
        return problem.solve()

    with on_cpu():
        expected = solve()
    launched = on_simt.launches()
    assert_same_bits(solve(), expected)
    assert on_simt.launches() > launched


@WIDE
@pytest.mark.parametrize(("count", "classes"), [(0, 5), (3, 1), (5, 300), (2, 5000)])
def test_softmax(on_simt: Any, count: int, classes: int, dtype: torch.dtype) -> None:
    logits, tokens = softmax_arguments(count, classes, dtype)
    twin = logits.clone()
    losses = ops.softmax_losses(logits, tokens)
    numbers = ops.softmax_directions_(logits, tokens)
    with on_cpu():
        assert_same_bits(losses, ops.softmax_losses(twin, tokens))
        assert_same_bits(numbers, ops.softmax_directions_(twin, tokens))
    assert_same_bits(logits, twin)


@WIDE
@pytest.mark.parametrize("in_turn", [False, True])
def test_root_steps(on_simt: Any, in_turn: bool, dtype: torch.dtype) -> None:
    logits, tokens = softmax_arguments(6, 2500, dtype)
    hidden = torch.randn(6, 9, dtype=dtype, generator=torch.Generator().manual_seed(1))
    squares = hidden.double().square().sum(1)
    rest = (tokens, squares, hidden @ hidden.T if in_turn else None, 0.3, True)
    twin = logits.clone()
    numbers = ops.root_steps_(logits, *rest)
    with on_cpu():
        assert_same_bits(numbers, ops.root_steps_(twin, *rest))
    assert_same_bits(logits, twin)


def test_the_sequential_method(on_simt: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, hidden = (torch.randn(n, 8, generator=generator) for n in (2100, 20))
    tokens = torch.randint(2100, (20,), generator=generator)
    with on_cpu():
        expected = newton_components_recalculated(weight, hidden, tokens)
    result = newton_components_recalculated(weight, hidden, tokens)
    assert_same_bits(result.weight, expected.weight)
    assert_same_bits(result.losses, expected.losses)


def test_a_failed_launch_is_reported_and_not_remembered(on_simt: Any) -> None:
    logits, tokens = softmax_arguments(3, 40, torch.float32)
    on_simt.fail_next("cudaLaunchKernelEx")
    with pytest.raises(RuntimeError, match="fusedstep: launching the softmax failed"):
        ops.softmax_losses(logits, tokens)
    assert on_simt.last_error() == 0
    losses = ops.softmax_losses(logits, tokens)
    with on_cpu():
        assert_same_bits(losses, ops.softmax_losses(logits, tokens))
