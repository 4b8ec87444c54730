"""The softmax rows of the Newton family: accurate where 1 - p_y is far below the roundoff."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from fusedstep.lm_head.softmax import directions_, token_losses
from tests.support.tensors import assert_same_bits


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_rows_are_those_of_autograd(spread):
    torch.manual_seed(0)
    logits = spread * torch.randn(20, 11, dtype=torch.float64)
    tokens = torch.randint(11, (20,))
    losses = cross_entropy(logits, tokens, reduction="none")
    delta = logits.softmax(1) - one_hot(tokens, 11)
    directions = logits.clone()
    rows = directions_(directions, tokens)
    torch.testing.assert_close(rows.loss, losses, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(rows.miss[:, None] * directions, delta, rtol=1e-12, atol=1e-14)
    squares = rows.miss.square() * rows.square
    torch.testing.assert_close(squares, delta.square().sum(1), rtol=1e-12, atol=1e-14)
    assert_same_bits(token_losses(logits, tokens), rows.loss)


@pytest.mark.parametrize("ahead", [5.0, 20.0, 80.0])
def test_a_sure_token_keeps_its_digits_in_float32(ahead):
    logits = torch.tensor([[100.0 + ahead, 100.0, 100.0, 99.0]])
    rows = directions_(logits, torch.tensor([0]))
    rest = math.exp(-ahead) * (2 + math.exp(-1))
    assert float(rows.loss) == pytest.approx(math.log1p(rest), rel=1e-5, abs=0)
    assert float(rows.miss) == pytest.approx(rest / (1 + rest), rel=1e-5, abs=0)
    others = torch.tensor([0.0, 1.0, 1.0, math.exp(-1)]) / (2 + math.exp(-1))
    torch.testing.assert_close(logits[0], others - one_hot(torch.tensor(0), 4))
    assert float(rows.square) == pytest.approx(1 + float(others.square().sum()), rel=1e-5, abs=0)


def test_a_token_that_is_certain_has_no_gradient_and_one_that_is_impossible_a_loss():
    logits = torch.tensor([[0.0, 500.0], [500.0, 0.0], [7.0, 7.0]])
    rows = directions_(logits, torch.tensor([1, 1, 1]))
    assert rows.loss.tolist() == pytest.approx([0.0, 500.0, math.log(2)])
    assert rows.miss.tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chance_below_the_normal_numbers_is_none_and_one_above_is_kept(dtype):
    tiny = torch.finfo(dtype).tiny
    chances = torch.tensor([4 * tiny, 2 * tiny, 0.5 * tiny, 0.1 * tiny], dtype=torch.float64)
    tokens = torch.zeros(4, dtype=torch.int64)
    logits = torch.stack([torch.zeros(4), chances.log().to(dtype)], 1).to(dtype)
    rows = directions_(logits, tokens)
    expected = torch.where(chances < tiny, 0.0, chances)
    torch.testing.assert_close(rows.miss, expected, rtol=1e-4, atol=0)
    assert_same_bits(rows.loss, rows.miss)
    assert logits.tolist() == 4 * [[-1.0, 1.0]]


def test_how_far_the_token_is_ahead_costs_the_others_no_digit():
    others = torch.tensor([1.0, 0.0, -100.0, -1000.0])
    logits = torch.stack([torch.cat([torch.tensor([first]), others]) for first in (0.0, 80.0, 1e4)])
    directions_(logits, torch.zeros(3, dtype=torch.int64))
    assert_same_bits(logits[1], logits[0])
    assert_same_bits(logits[2], logits[0])
    assert logits[0, 4] == 0  # below the normal numbers


def test_one_class_is_no_choice():
    rows = directions_(torch.tensor([[3.0]]), torch.tensor([0]))
    assert (float(rows.loss), float(rows.miss)) == (0.0, 0.0)
