"""The ops for loss and gradient of rows of logits: their bits, their accuracy, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import cross_entropy, one_hot

import fusedstep  # noqa: F401  # registers the ops
from tests.reference import softmax as reference
from tests.support.tensors import assert_same_bits, name_of, threads

ops = torch.ops.fusedstep
WIDE = (torch.float32, torch.float64)
every_type = pytest.mark.parametrize("dtype", WIDE, ids=name_of)


def arguments(
    count: int,
    classes: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    spread: float = 5.0,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count + classes)
    logits = spread * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    tokens = torch.randint(classes, (count,), generator=generator)
    return logits.to(device, dtype), tokens.to(device)


def of_reference(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    arrays = reference.directions(logits.cpu().numpy(), tokens.cpu().numpy())
    return tuple(map(torch.from_numpy, arrays))


@every_type
@pytest.mark.parametrize("spread", [0.1, 5.0, 500.0])
@pytest.mark.parametrize(
    ("count", "classes"),
    [(0, 5), (1, 1), (5, 9), (4, 127), (3, 129), (2, 2048), (2, 2049), (3, 7000), (1, 70_000)],
)
def test_bits_are_those_of_the_definition(
    count: int, classes: int, spread: float, dtype: torch.dtype, device: torch.device
) -> None:
    logits, tokens = arguments(count, classes, dtype, device, spread)
    directions, numbers = of_reference(logits, tokens)
    before = logits.clone()
    assert_same_bits(ops.softmax_losses(logits, tokens), numbers, "numbers alone")
    assert_same_bits(logits, before, "logits that are only read")
    assert_same_bits(ops.softmax_directions_(logits, tokens), numbers, "numbers")
    assert_same_bits(logits, directions, "directions")


def test_the_order_shows_in_these_examples() -> None:
    logits, _ = arguments(3, 7000)
    first = torch.zeros(3, dtype=torch.int64)
    losses = [
        ops.softmax_losses(z, first)[:, 0] for z in (logits, logits[:, [0, *range(6999, 0, -1)]])
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    assert not torch.equal(*losses)


@every_type
def test_exponentials_and_logarithms_are_those_of_numpy(dtype: torch.dtype) -> None:
    kind = np.float32 if dtype == torch.float32 else np.float64
    x = -np.geomspace(1e-30, reference._EXP[np.dtype(kind)][-1] * -0.9999, 200_001).astype(kind)
    wide = x.astype(np.longdouble)
    error = np.abs(reference.exp(x) - np.exp(wide)) / np.spacing(np.exp(wide).astype(kind))
    assert error.max() < 1.02
    assert reference.exp(np.array([0, -0.0, -np.inf, -800], kind)).tolist() == [1, 1, 0, 0]
    x = np.geomspace(1e-300, 1e300, 200_001)
    exact = np.log1p(x.astype(np.longdouble))
    assert (np.abs(reference.log1p(x) - exact) / np.spacing(exact.astype(np.float64))).max() < 2.4


@every_type
def test_numbers_are_those_of_autograd_in_float64(dtype: torch.dtype) -> None:
    logits, tokens = arguments(20, 5000, dtype)
    wide = logits.double()
    losses = cross_entropy(wide, tokens, reduction="none")
    delta = wide.softmax(1) - one_hot(tokens, 5000)
    loss, miss, square, scale = ops.softmax_directions_(logits, tokens).unbind(1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(loss, losses, rtol=tolerance, atol=0)
    torch.testing.assert_close(miss[:, None] * logits, delta, rtol=4 * tolerance, atol=1e-15)
    torch.testing.assert_close(
        miss.square() * square, delta.square().sum(1), rtol=tolerance, atol=0
    )
    assert scale.tolist() == [1.0] * 20


@every_type
@pytest.mark.parametrize("count", [1, 2, 30])
def test_bits_do_not_depend_on_threads(
    count: int, dtype: torch.dtype, device: torch.device
) -> None:
    logits, tokens = arguments(count, 40_000, dtype, device)
    gram = torch.randn(count, count, dtype=dtype, device=device)
    squares = torch.ones(count, dtype=torch.float64, device=device)
    results = []
    for workers in (1, 2, 5):
        with threads(workers):
            alone, in_turn = logits.clone(), logits.clone()
            numbers = ops.softmax_directions_(alone, tokens)
            steps = ops.root_steps_(in_turn, tokens, squares, gram, 0.5, True)
            results.append(
                torch.cat([t.double().flatten() for t in (alone, numbers, in_turn, steps)])
            )
    for result in results[1:]:
        assert_same_bits(result, results[0])


@every_type
def test_rows_may_lie_apart(dtype: torch.dtype, device: torch.device) -> None:
    logits, tokens = arguments(4, 3000, dtype, device)
    directions, numbers = of_reference(logits, tokens)
    wide = torch.full((4, 3011), torch.nan, dtype=dtype, device=device)
    wide[:, 7:3007] = logits
    assert_same_bits(ops.softmax_directions_(wide[:, 7:3007], tokens), numbers)
    assert_same_bits(wide[:, 7:3007], directions)
    assert wide[:, :7].isnan().all()
    assert wide[:, 3007:].isnan().all()


def test_what_is_not_finite_is_not_hidden(device: torch.device) -> None:
    logits, tokens = arguments(6, 4000, device=device)
    rows = torch.arange(4, device=device)
    logits[0, (tokens[0] + 1) % 4000] = torch.nan
    logits[1, (tokens[1] + 2100) % 4000] = torch.inf
    logits[rows[2:], tokens[2:4]] = torch.tensor([torch.inf, -torch.inf], device=device)
    logits[4, tokens[4] - 1] = -torch.inf
    losses = ops.softmax_losses(logits, tokens)[:, 0].cpu()
    assert losses[:3].isnan().all()
    assert losses[3] == torch.inf
    assert losses[4:].isfinite().all()


def test_steps_by_themselves_are_scaled_directions(device: torch.device) -> None:
    logits, tokens = arguments(5, 300, torch.float64, device)
    squares = torch.rand(5, dtype=torch.float64, device=device) + 0.5
    steps = logits.clone()
    loss, miss, square, scale = ops.root_steps_(steps, tokens, squares, None, 0.7, True).unbind(1)
    ops.softmax_directions_(logits, tokens)
    torch.testing.assert_close(scale, (loss - 0.7) / (miss * square * squares), rtol=1e-15, atol=0)
    torch.testing.assert_close(steps, scale[:, None] * logits, rtol=1e-14, atol=0)


def test_steps_in_turn_are_for_the_logits_after_those_before(device: torch.device) -> None:
    logits, tokens = arguments(9, 2500, torch.float64, device, spread=1.0)
    hidden = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = hidden.to(device)
    squares, gram = hidden.square().sum(1), hidden @ hidden.T
    expected, change = [], torch.zeros(2500, 4, dtype=torch.float64, device=device)
    for n in range(9):
        now = (logits[n] - change @ hidden[n])[None]
        ops.root_steps_(now, tokens[n : n + 1], squares[n : n + 1], None, 0.2, True)
        expected.append(now[0])
        change += torch.outer(now[0], hidden[n])
    ops.root_steps_(logits, tokens, squares, gram, 0.2, True)
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-10, atol=1e-14)


@every_type
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    logits, tokens = arguments(5, 300, dtype, device)
    squares = torch.ones(5, dtype=torch.float64, device=device)
    gram = torch.ones(5, 5, dtype=dtype, device=device)
    opcheck(ops.softmax_losses.default, (logits, tokens))
    opcheck(ops.softmax_directions_.default, (logits, tokens))
    opcheck(ops.root_steps_.default, (logits, tokens, squares, None, 0.5, True))
    opcheck(ops.root_steps_.default, (logits, tokens, squares, gram, 0.5, False))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (
            0,
            lambda t: t.bfloat16(),
            "logits must be a dense float32 or float64 tensor",
        ),
        (0, lambda t: t.T.contiguous().T, "logits must have neighbouring elements in memory"),
        (
            0,
            lambda t: t[:1].expand(5, 300),
            "logits must have rows that share no .* strides .0, 1. ",
        ),
        (0, lambda t: t[:, :0], "logits must have a class, got float32 with shape .5, 0. "),
        (0, lambda t: t[:4], r"squares must have the shape \[4\], got float64 with shape \[5\]"),
        (1, lambda t: t.int(), "tokens must be a dense int64 tensor, got int32"),
        (1, lambda t: t - 400, r"tokens\[0\] must be a class's number, got -"),
        (1, lambda t: t.fill_(300), r"tokens\[0\] must be a class's number, got 300"),
        (2, lambda t: t.float(), "squares must be a dense float64 tensor, got float32"),
        (3, lambda t: t.double(), "gram must be a dense float32 tensor, got float64"),
        (3, lambda t: t[:, :4], r"gram must have the shape \[5, 5\], got .*\[5, 4\]"),
    ],
)
def test_refused_with_nothing_changed(position: int, change, message: str) -> None:
    logits, tokens = arguments(5, 300)
    given = [logits, tokens, torch.ones(5, dtype=torch.float64), torch.ones(5, 5), 0.5, True]
    given[position] = change(given[position])
    before = given[0].clone()
    with pytest.raises(RuntimeError, match=f"root_steps_: {message}"):
        ops.root_steps_(*given)
    assert_same_bits(given[0], before, "logits")
