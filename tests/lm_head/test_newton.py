"""What the whole Newton family takes and refuses, and what it leaves alone."""

from __future__ import annotations

import math
import re

import pytest
import torch

from fusedstep.lm_head import (
    newton_block_diagonal,
    newton_bohning,
    newton_cg,
    newton_components,
    newton_components_recalculated,
    newton_full,
    newton_joint,
)
from tests.support.last_layer import regression, relative
from tests.support.reads import Largest
from tests.support.tensors import assert_same_bits, laid_out

METHODS = (
    newton_full,
    newton_components,
    newton_components_recalculated,
    newton_joint,
    newton_cg,
    newton_bohning,
    newton_block_diagonal,
)
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


@each_method
def test_any_chunks_give_the_same_result(method):
    problem = regression(13)
    whole = method(*problem, loss_constant=0.5, steps=2)
    for chunk_size in (1, 4, 13):
        result = method(*problem, loss_constant=0.5, steps=2, chunk_size=chunk_size)
        assert relative(result.weight, whole.weight) < 1e-8
        torch.testing.assert_close(result.losses, whole.losses, rtol=1e-8, atol=0)


@each_method
def test_the_same_call_gives_the_same_bits(method):
    problem = regression(40, dtype=torch.float32)
    first, second = (method(*problem, loss_constant=0.5, steps=2) for _ in range(2))
    assert_same_bits(first.weight, second.weight)
    assert_same_bits(first.losses, second.losses)


@each_method
def test_float32_is_near_float64(method):
    problem = regression(12)
    narrow = regression(12, dtype=torch.float32)
    wide = method(*(t.double() if t.is_floating_point() else t for t in narrow), loss_constant=0.5)
    result = method(*narrow, loss_constant=0.5)
    assert result.weight.dtype == torch.float32
    assert result.losses.dtype == torch.float64
    assert relative(result.weight.double(), wide.weight) < 1e-4
    torch.testing.assert_close(result.losses, wide.losses, rtol=1e-4, atol=0)
    assert problem.weight.dtype == method(*problem, loss_constant=0.5).weight.dtype


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_widened(method, dtype):
    weight, hidden, tokens = regression(12, dtype=dtype)
    result = method(weight, hidden, tokens, loss_constant=0.5)
    expected = method(weight.float(), hidden.float(), tokens, loss_constant=0.5)
    assert_same_bits(result.weight, expected.weight)
    assert_same_bits(result.losses, expected.losses)


@each_method
def test_batches_are_taken_and_nothing_given_is_written(method):
    weight, hidden, tokens = regression(12)
    order = torch.arange(12).view(4, 3).T  # so that position-major order is 0, 1, 2, ...
    weight = torch.nn.Parameter(weight)
    given = (weight, hidden[order].requires_grad_(), tokens[order])
    before = [t.detach().clone() for t in given]
    flat = method(weight, hidden, tokens, loss_constant=0.5, steps=2)
    batch = method(*given, loss_constant=0.5, steps=2)
    assert relative(batch.weight, flat.weight) < 1e-8
    assert not batch.weight.requires_grad
    for tensor, copy in zip(given, before, strict=True):
        assert_same_bits(tensor.detach(), copy)


@each_method
@pytest.mark.parametrize("layout", ["reversed", "gaps", "misaligned"])
def test_strides_change_nothing(method, layout):
    problem = regression(40, 24, 70, dtype=torch.float32)
    expected = method(*problem, loss_constant=0.5, chunk_size=15)
    views = [laid_out(tensor, layout) for tensor in problem]
    result = method(*views, loss_constant=0.5, chunk_size=15)
    assert_same_bits(result.weight, expected.weight)
    assert_same_bits(result.losses, expected.losses)


@each_method
def test_views_of_one_element_or_of_another_sign_are_taken(method):
    weight, hidden, tokens = regression(12, dtype=torch.float32)
    expected = method(weight, hidden, tokens[3].repeat(12), loss_constant=0.5)
    negative = torch.complex(hidden, -hidden).conj().imag
    assert negative.is_neg()
    result = method(weight, negative, tokens[3].expand(12), loss_constant=0.5)
    assert_same_bits(result.weight, expected.weight)


@each_method
def test_no_steps_give_the_weight_and_its_loss(method):
    problem = regression(12)
    weight, losses = method(*problem, steps=0)
    assert_same_bits(weight, problem.weight)
    assert weight.data_ptr() != problem.weight.data_ptr()
    expected = torch.nn.functional.cross_entropy(problem.hidden @ weight.T, problem.tokens)
    torch.testing.assert_close(losses, expected[None], rtol=1e-12, atol=0)


@each_method
def test_nothing_as_large_as_all_logits_is_made(method):
    problem = regression(300, width=3, vocabulary=40)
    options = {
        newton_components_recalculated: {"block_size": 10},
        newton_joint: {"group_size": 10},
    }
    with Largest() as largest:
        method(*problem, steps=2, chunk_size=10, **options.get(method, {}))
    assert largest.elements <= 300 * 3 * 3  # of all tokens only what has the size of hidden


@each_method
def test_overflow_ends_in_numbers_that_are_not_finite(method):
    weight, hidden, tokens = regression(12, dtype=torch.float32)
    result = method(1e20 * weight, 1e20 * hidden, tokens, steps=2)
    assert not result.losses.isfinite().any()


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda m: m.__name__)
def test_an_explosion_ends_in_numbers_that_are_not_finite(method):
    problem = regression(12, dtype=torch.float32)
    result = method(*problem, loss_constant=-1e39, steps=4)
    assert bool(result.losses[0].isfinite())
    assert not bool(result.losses[-1].isfinite())


NAN_HIDDEN = torch.zeros(12, 5, dtype=torch.float64)
NAN_HIDDEN[3, 1] = math.nan
HIGH = torch.zeros(12, dtype=torch.int64)
HIGH[5] = 9
REFUSED = {
    "NaN hidden": ({"hidden": NAN_HIDDEN}, "hidden[3, 1] must be finite, got nan"),
    "infinite weight": (
        {"weight": torch.full((9, 5), math.inf)},
        "weight[0, 0] must be finite, got inf",
    ),
    "token too large": ({"tokens": HIGH}, "tokens must be at least 0 and below 9, got 9"),
    "negative token": ({"tokens": HIGH - 1}, "tokens must be at least 0 and below 9, got -1"),
    "float tokens": ({"tokens": HIGH.double()}, "tokens must be int64, got torch.float64"),
    "tokens as a list": ({"tokens": [1, 2]}, "tokens must be a tensor, got list"),
    "fewer tokens": ({"tokens": HIGH[:4]}, "tokens must have the shape [12] of hidden"),
    "no tokens": (
        {"tokens": HIGH[:0], "hidden": NAN_HIDDEN[:0]},
        "tokens must have at least one element, got (0,)",
    ),
    "another width": ({"hidden": NAN_HIDDEN[:, :4]}, "hidden must be [N, 5] or [B, T, 5]"),
    "small vocabulary": (
        {"weight": torch.zeros(4, 5), "tokens": HIGH},
        "tokens must be at least 0 and below 4, got 9",
    ),
    "flat weight": ({"weight": torch.zeros(45)}, "weight must have the shape [V, d]"),
    "integer weight": (
        {"weight": torch.zeros(9, 5, dtype=torch.int64)},
        "weight must be float32, float64, bfloat16 or float16, got torch.int64",
    ),
    "steps < 0": ({"steps": -1}, "steps must be at least 0, got -1"),
    "a broken step": ({"steps": 1.5}, "steps must be an int, got float 1.5"),
    "NaN constant": ({"loss_constant": math.nan}, "loss_constant must be finite, got nan"),
    "constant as text": ({"loss_constant": "1"}, "loss_constant must be a number, got str"),
    "no chunk": ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
}


@each_method
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(method, case):
    changed, message = REFUSED[case]
    problem = regression(12)
    arguments = {**problem._asdict(), **changed}
    before = problem.weight.clone()
    with pytest.raises((ValueError, TypeError), match=re.escape(f"{method.__name__}: {message}")):
        method(**arguments)
    assert_same_bits(problem.weight, before)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (newton_full, {"scaling": "none"}, "scaling must be one of published, rank, frobenius"),
        (newton_components, {"scaling": 1}, "scaling must be one of published, mean, spectral"),
        (newton_components, {"uphill": "no"}, "uphill must be True or False, got 'no'"),
        (newton_components_recalculated, {"uphill": 1}, "uphill must be True or False, got 1"),
        (newton_joint, {"uphill": None}, "uphill must be True or False, got None"),
        (newton_components, {"power_iterations": 0}, "power_iterations must be at least 1, got 0"),
        (newton_components_recalculated, {"block_size": 0}, "block_size must be at least 1, got 0"),
        (newton_joint, {"group_size": 0}, "group_size must be at least 1, got 0"),
        (newton_joint, {"damping": -1.0}, "damping must be 0 or more, got -1.0"),
        (newton_joint, {"rtol": math.nan}, "rtol must be 0 or more, got nan"),
        (newton_cg, {"max_products": 0}, "max_products must be at least 1, got 0"),
        (newton_cg, {"damping": math.nan}, "damping must be 0 or more, got nan"),
        (newton_block_diagonal, {"damping": 0.0}, "damping must be above 0, got 0.0"),
    ],
)
def test_bad_options_are_refused(method, options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(f"{method.__name__}: {message}")):
        method(*regression(), **options)
