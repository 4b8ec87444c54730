"""The last layer by least squares: against the literal N x V form, however the tokens come."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fusedstep.lm_head import LeastSquares, least_squares
from tests.reference import least_squares as literal
from tests.support.tensors import DTYPES, assert_same_bits, name_of, threads

VOCABULARY = 40
UNSEEN = 7  # no example has this token
SHAPES = [(500, 16), (17, 16), (16, 16), (9, 16), (1, 5), (300, 1)]  # tokens, width


def example(
    count: int, width: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Hidden states of uneven size, and tokens of which one is in half of the places."""
    generator = torch.Generator().manual_seed(count + width)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64)
    hidden = hidden * torch.logspace(0, 1, width, dtype=torch.float64) + 0.5
    tokens = torch.randint(0, VOCABULARY, (count,), generator=generator)
    tokens[::2] = 3
    tokens[tokens == UNSEEN] = 0
    return hidden.to(device, dtype), tokens.to(device)


def summed(hidden: Tensor, tokens: Tensor, parts: int = 1, **options: float) -> LeastSquares:
    solver = LeastSquares(hidden.shape[1], VOCABULARY, device=hidden.device, **options)
    for some, of_some in zip(hidden.tensor_split(parts), tokens.tensor_split(parts), strict=True):
        solver.update(some, of_some)
    return solver


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """To `tolerance` of the largest element."""
    difference = (actual.double().cpu() - expected.double().cpu()).abs().max()
    assert actual.shape == expected.shape
    assert difference <= tolerance * expected.abs().max(), f"{difference:.3g}"


@pytest.mark.parametrize("scale", [1.0, 1000.0, -0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_is_the_literal_solution(
    count: int, width: int, dtype: torch.dtype, scale: float, device: torch.device
) -> None:
    hidden, tokens = example(count, width, dtype, device)
    expected = literal.least_squares(hidden.cpu(), tokens.cpu(), VOCABULARY, scale)
    solver = summed(hidden, tokens, 3, scale=scale)
    weight = solver.solve()
    assert weight.dtype == torch.float64
    assert_near(weight, expected)
    assert not weight[UNSEEN].any()
    wanted = literal.mse(expected, hidden.cpu(), tokens.cpu(), scale)
    assert abs(solver.mse(weight).cpu() - wanted) <= 1e-12 * scale**2 / VOCABULARY
    at_once = least_squares(hidden, tokens, VOCABULARY, scale=scale)
    assert_same_bits(at_once, summed(hidden, tokens, scale=scale).solve().to(dtype))


@pytest.mark.parametrize("ridge", [1e-6, 0.3, 1e4])
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_ridge_is_that_of_the_literal_solution(count: int, width: int, ridge: float) -> None:
    hidden, tokens = example(count, width)
    expected = literal.least_squares(hidden, tokens, VOCABULARY, 3.0, ridge)
    assert_near(summed(hidden, tokens, scale=3.0).solve(ridge), expected, 1e-7)
    assert_near(least_squares(hidden, tokens, VOCABULARY, scale=3.0, ridge=ridge), expected, 1e-7)


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_many_ridges_are_each_of_them(count: int, width: int) -> None:
    hidden, tokens = example(count, width)
    ridges = [0.0, 1e-3, 1.0, 1e3]
    solver = summed(hidden, tokens)
    together = solver.solve(ridges)
    assert together.shape == (4, VOCABULARY, width)
    for ridge, weight in zip(ridges, together, strict=True):
        assert_near(weight, literal.least_squares(hidden, tokens, VOCABULARY, 1.0, ridge), 1e-7)
        assert_near(summed(hidden, tokens).solve(ridge), weight)
    assert_same_bits(solver.solve(torch.tensor(ridges, dtype=torch.float64)), together)
    assert_near(solver.solve([1e-3]), together[1:2])


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_limits_of_the_ridge(count: int, width: int) -> None:
    solver = summed(*example(count, width))
    assert_near(solver.solve(1e-300), solver.solve())
    assert solver.solve(1e300).abs().max() < 1e-290
    assert not solver.solve(float("inf")).any()


def test_smallest_norm_where_columns_are_copies() -> None:
    hidden, tokens = example(3000, 6, torch.float32)
    doubled = torch.cat([hidden, hidden, hidden[:, :1]], dim=1)
    weight = summed(doubled, tokens, 4).solve()
    assert_near(weight, literal.least_squares(doubled, tokens, VOCABULARY))
    assert_near(weight[:, :6], weight[:, 6:12])


def test_rtol_is_strict_and_of_the_eigenvalues_of_the_gram_matrix() -> None:
    hidden = torch.diag(torch.tensor([4.0, 2.0, 1.0]))  # eigenvalues 16, 4, 1: exact
    solver = LeastSquares(3, 3)
    solver.update(hidden, torch.arange(3))
    for rtol, kept in ((0.0, 3), (1 / 17, 3), (1 / 16, 2), (0.2, 2), (0.25, 1), (1.0, 0)):
        expected = torch.diag(1 / torch.tensor([4.0, 2.0, 1.0]) * (torch.arange(3) < kept))
        assert_near(solver.solve(rtol=rtol), expected)
        assert int((solver.solve([0.0], rtol=rtol)[0].diagonal() != 0).sum()) == kept
    # 16 + 8, 4 + 8, 1 + 8: none of them is below a third
    assert int((solver.solve(8.0, rtol=1 / 3).diagonal() != 0).sum()) == 3


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=name_of)
def test_mse_of_any_weight(weight_dtype: torch.dtype, device: torch.device) -> None:
    hidden, tokens = example(200, 16, device=device)
    weight = torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(0))
    weight = weight.to(device, weight_dtype).requires_grad_()
    error = summed(hidden, tokens, scale=7.0).mse(weight)
    assert error.dtype == torch.float64
    expected = literal.mse(weight.cpu(), hidden.cpu(), tokens.cpu(), 7.0)
    torch.testing.assert_close(error.cpu(), expected, rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(error, weight)
    (wanted,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(gradient, wanted)


def test_mse_takes_many_classes_in_blocks() -> None:
    hidden, _ = example(60, 4)
    tokens = torch.arange(60) * 150
    solver = LeastSquares(4, 9001, scale=10.0)
    solver.update(hidden, tokens)
    weight = torch.randn(9001, 4, dtype=torch.float64)
    expected = literal.mse(weight, hidden, tokens, 10.0)
    torch.testing.assert_close(solver.mse(weight), expected, rtol=1e-13, atol=0)
    assert_same_bits(solver.mse(weight.mT.contiguous().mT), solver.mse(weight))
    trivial = solver.mse(torch.zeros(9001, 4))
    torch.testing.assert_close(trivial, torch.tensor(100 / 9001, dtype=torch.float64))


def test_parts_order_and_merging_change_nothing_but_rounding(device: torch.device) -> None:
    hidden, tokens = example(9000, 16, torch.float32, device)  # more than a block
    whole = summed(hidden, tokens).solve()
    shuffled = torch.randperm(9000, generator=torch.Generator().manual_seed(1)).to(device)
    assert_near(summed(hidden[shuffled], tokens[shuffled]).solve(), whole, 1e-12)
    assert_near(summed(hidden, tokens, 13).solve(), whole, 1e-12)
    first, second = summed(hidden[:4000], tokens[:4000]), summed(hidden[4000:], tokens[4000:], 2)
    before = second.solve()
    first.merge(second)
    assert first.count == 9000
    assert_near(first.solve(), whole, 1e-12)
    assert_same_bits(second.solve(), before)
    second.merge(second)
    assert second.count == 10_000
    assert_near(second.solve(), before, 1e-12)


def test_sums_have_the_same_bits_at_every_run_and_for_any_number_of_threads() -> None:
    hidden, tokens = example(70_000, 12, torch.float32)  # more than are sorted at a time
    solvers = []
    for count in (1, 1, 2, 3):
        with threads(count):
            solvers.append(summed(hidden, tokens))
    for solver in solvers[1:]:
        assert_same_bits(solver.state_dict()["sums"], solvers[0].state_dict()["sums"])
    assert_same_bits(solvers[1].solve(), solvers[0].solve())


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_faster_float32_products_play_no_part(precision: str) -> None:
    hidden, tokens = example(500, 16, torch.float32)
    expected = summed(hidden, tokens).solve()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu"):
            assert_same_bits(summed(hidden, tokens).solve(), expected)
            assert_same_bits(least_squares(hidden, tokens, VOCABULARY), expected.float())
    finally:
        torch.set_float32_matmul_precision(before)


def test_batches_strides_and_flat_tokens_are_the_same_rows() -> None:
    hidden, tokens = example(60, 16, torch.float32)
    expected = summed(hidden, tokens).solve()
    batch, of_batch = hidden.view(4, 15, 16), tokens.view(4, 15)
    transposed = batch.transpose(1, 2).contiguous().transpose(1, 2)
    strided = tokens.repeat_interleave(2)[::2]
    negative = torch._neg_view(-tokens)
    for some, ids in (
        *((batch, of_batch), (batch, tokens), (transposed, of_batch)),
        *((hidden, strided), (hidden, negative)),
    ):
        solver = LeastSquares(16, VOCABULARY)
        solver.update(some, ids)
        assert_same_bits(solver.solve(), expected)
        assert_same_bits(least_squares(some, ids, VOCABULARY), expected.float())
    solver.update(hidden[:0], tokens[:0])
    assert solver.count == 60


def test_a_solution_is_not_out_of_date() -> None:
    hidden, tokens = example(60, 5)
    solver = summed(hidden[:30], tokens[:30])
    early = solver.solve([0.0, 1.0])  # leaves a factorisation
    solver.update(hidden[30:], tokens[30:])
    late = summed(hidden, tokens).solve([0.0, 1.0])
    assert not torch.allclose(early, late)
    assert_near(solver.solve([0.0, 1.0]), late)
    assert_near(solver.solve(), late[0])


def test_state_goes_through_a_file(tmp_path, device: torch.device) -> None:
    hidden, tokens = example(60, 5, device=device)
    solver = summed(hidden, tokens, scale=2.0)
    torch.save(solver.state_dict(), tmp_path / "sums.pt")
    other = summed(hidden[:7], tokens[:7], scale=2.0)
    other.solve([0.0])
    other.load_state_dict(torch.load(tmp_path / "sums.pt"))
    assert other.count == 60
    assert_same_bits(other.solve([0.0]), solver.solve([0.0]))
    other.update(hidden, tokens)
    assert_near(other.solve(), solver.solve())
    assert solver.count == 60


@pytest.mark.parametrize("ridge", [0.0, 1e-15, 0.4])  # the second is as good as none
@pytest.mark.parametrize(("count", "width"), [(12, 4), (4, 4), (3, 5), (1, 3)])
def test_gradient_in_the_hidden_states(count: int, width: int, ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, dtype=torch.float64, generator=generator)
    tokens = torch.randint(0, 4, (count,), generator=generator)
    assert gradcheck(
        lambda x: least_squares(x, tokens, 5, scale=3.0, ridge=ridge), hidden.requires_grad_()
    )


def test_gradient_in_a_batch_of_float32_and_in_blocks() -> None:
    hidden, tokens = example(9000, 6, torch.float32)
    hidden = hidden.view(9, 1000, 6).requires_grad_()
    weights = torch.randn(VOCABULARY, 6, generator=torch.Generator().manual_seed(0))
    (least_squares(hidden, tokens, VOCABULARY, scale=50.0) * weights).sum().backward()
    twin = hidden.detach().double().requires_grad_()
    gram = twin.view(-1, 6).T @ twin.view(-1, 6)
    wanted = literal.targets(tokens, VOCABULARY, 50.0)
    solution = torch.linalg.solve(gram, twin.view(-1, 6).T @ wanted).T
    (solution * weights).sum().backward()
    assert hidden.grad.dtype == torch.float32
    assert_near(hidden.grad, twin.grad, 1e-6)


def test_no_second_derivative() -> None:
    hidden, tokens = example(30, 4)
    hidden.requires_grad_()
    for loss in (
        lambda x: least_squares(x, tokens, VOCABULARY).sum(),
        lambda x: least_squares(x, tokens, VOCABULARY).square().sum() + x.square().sum(),
    ):
        (first,) = torch.autograd.grad(loss(hidden), hidden, create_graph=True)
        with pytest.raises(NotImplementedError, match="least_squares: hidden has a first"):
            first.sum().backward()
        with pytest.raises(NotImplementedError, match="least_squares: hidden has a first"):
            torch.autograd.functional.hessian(loss, hidden.detach())


MEMORY = """
import re, torch
from fusedstep.lm_head import LeastSquares
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
hidden = torch.randn({count}, 64)
tokens = torch.arange({count}) * 7919 % 5000
LeastSquares(64, 5000).update(hidden[:100], tokens[:100])  # loads what torch loads late
solver = LeastSquares(64, 5000)
torch.randn(100)
before = peak()
solver.update(hidden, tokens)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_tokens_of_a_call() -> None:
    peaks = []
    for count in (100_000, 800_000):
        code = MEMORY.format(count=count)
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        peaks.append(int(result.stdout))
    # A block in float64 and its sums are 2 MB + 4 MB; one-hot targets would be 16 GB, hidden
    # states in float64 410 MB.
    assert max(peaks) < 24 << 20, peaks
