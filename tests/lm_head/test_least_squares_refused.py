"""What the least squares of the last layer refuse, with the sums as they were."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedstep.lm_head import LeastSquares, least_squares
from tests.support.tensors import assert_same_bits

WIDTH, VOCABULARY = 4, 10


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, WIDTH, generator=generator)
    return hidden, torch.randint(0, VOCABULARY, (count,), generator=generator)


def with_value(hidden: Tensor, value: float) -> Tensor:
    return hidden.index_put(
        (torch.tensor(2), torch.tensor(3)), torch.tensor(value, dtype=hidden.dtype)
    )


@pytest.fixture
def solver() -> LeastSquares:
    some = LeastSquares(WIDTH, VOCABULARY)
    some.update(*batch())
    return some


class Unchanged:
    """What a refused call must leave as it was."""

    def __init__(self, solver: LeastSquares) -> None:
        self.solver, self.before = solver, self.take(solver)

    @staticmethod
    def take(solver: LeastSquares) -> dict[str, Any]:
        state = solver.state_dict()
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}

    def check(self) -> None:
        for name, value in self.take(self.solver).items():
            if isinstance(value, Tensor):
                assert_same_bits(value, self.before[name], name)
            else:
                assert value == self.before[name]


def refused(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
        call()
    assert type(caught.value) is error


hidden_, tokens_ = batch()
BATCHES = [
    (ValueError, "tokens must be at least 0 and below 10, got -", hidden_, tokens_ - 10),
    (ValueError, "tokens must be at least 0 and below 10, got 1", hidden_, tokens_ + 10),
    (TypeError, "tokens must be int64, got torch.float32", hidden_, tokens_.float()),
    (TypeError, "tokens must be int64, got torch.int32", hidden_, tokens_.int()),
    (TypeError, "tokens must be int64, got torch.bool", hidden_, tokens_ > 3),
    (TypeError, "tokens must be a tensor, got list", hidden_, tokens_.tolist()),
    (ValueError, "tokens must have the shape [6] of hidden", hidden_, tokens_[:5]),
    (ValueError, "tokens must have the shape [6] of hidden", hidden_, tokens_[:, None]),
    (
        ValueError,
        "tokens must have the shape [2, 3] of hidden",
        hidden_.view(2, 3, WIDTH),
        tokens_.view(3, 2),
    ),
    (ValueError, "hidden must be finite, got nan", with_value(hidden_, math.nan), tokens_),
    (ValueError, "hidden must be finite, got inf", with_value(hidden_, math.inf), tokens_),
    (ValueError, "hidden must be finite, got -inf", with_value(hidden_.half(), -math.inf), tokens_),
    (
        ValueError,
        "hidden must be finite, got squares beyond float64",
        with_value(hidden_.double(), 1e200),
        tokens_,
    ),
    (TypeError, "hidden must be float32, float64, bfloat16", hidden_.long(), tokens_),
    (TypeError, "hidden must be a tensor, got list", hidden_.tolist(), tokens_),
    (TypeError, "hidden must be dense", hidden_.to_sparse(), tokens_),
    (ValueError, "hidden must be on a CPU or a CUDA device", hidden_.to("meta"), tokens_),
    (ValueError, "tokens must be on the device cpu, got meta", hidden_, tokens_.to("meta")),
    (ValueError, "hidden must be [N, 4] or [B, T, 4]", hidden_[0], tokens_[:1]),
    (ValueError, "hidden must be [N, 4] or [B, T, 4]", hidden_[None, None], tokens_),
]


@pytest.mark.parametrize(("error", "message", "hidden", "tokens"), BATCHES)
def test_update_and_least_squares_refuse(
    error: type[Exception], message: str, hidden: Any, tokens: Any, solver: LeastSquares
) -> None:
    sums = Unchanged(solver)
    refused(error, f"LeastSquares.update: {message}", lambda: solver.update(hidden, tokens))
    sums.check()
    if "[N, 4]" not in message:  # there, the width is hidden's own
        refused(
            error, f"least_squares: {message}", lambda: least_squares(hidden, tokens, VOCABULARY)
        )


def test_update_refuses_another_width(solver: LeastSquares) -> None:
    hidden, tokens = batch()
    message = "LeastSquares.update: hidden must be [N, 4] or [B, T, 4], got [6, 5]"
    wide = torch.cat([hidden, hidden[:, :1]], 1)
    refused(ValueError, message, lambda: solver.update(wide, tokens))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "ridge must be 0 or more, got -0.1", {"ridge": -0.1}),
        (ValueError, "ridge must be 0 or more, got nan", {"ridge": math.nan}),
        (TypeError, "ridge must be a number, got str", {"ridge": "1"}),
        (TypeError, "ridge must be a number, got NoneType", {"ridge": None}),
        (ValueError, "rtol must be 0 or more, got -1.0", {"rtol": -1}),
        (ValueError, "rtol must be 0 or more, got nan", {"rtol": math.nan}),
    ],
)
def test_solve_and_least_squares_refuse(
    error: type[Exception], message: str, options: dict[str, Any], solver: LeastSquares
) -> None:
    sums = Unchanged(solver)
    refused(error, f"LeastSquares.solve: {message}", lambda: solver.solve(**options))
    sums.check()
    refused(
        error, f"least_squares: {message}", lambda: least_squares(*batch(), VOCABULARY, **options)
    )


def test_one_of_several_ridges_is_refused_by_its_number(solver: LeastSquares) -> None:
    message = "LeastSquares.solve: ridge[1] must be 0 or more, got -2.0"
    refused(ValueError, message, lambda: solver.solve([1.0, -2.0]))
    refused(ValueError, message, lambda: solver.solve(torch.tensor([1.0, -2.0])))


def test_nothing_is_solved_before_tokens_came() -> None:
    empty = LeastSquares(WIDTH, VOCABULARY)
    empty.update(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long))
    added = "count must be at least 1 (call update first), got 0"
    refused(ValueError, f"LeastSquares.solve: {added}", empty.solve)
    weight = torch.zeros(VOCABULARY, WIDTH)
    refused(ValueError, f"LeastSquares.mse: {added}", lambda: empty.mse(weight))
    nothing = torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long)
    refused(
        ValueError,
        "least_squares: hidden must have elements, got [0, 4]",
        lambda: least_squares(*nothing, VOCABULARY),
    )


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (ValueError, "d_model must be at least 1, got 0", (0, 5), {}),
        (TypeError, "d_model must be an int, got float 4.0", (4.0, 5), {}),
        (ValueError, "vocab_size must be at least 1, got -1", (4, -1), {}),
        (TypeError, "vocab_size must be an int, got bool True", (4, True), {}),
        (ValueError, "scale must be finite and not 0, got 0.0", (4, 5), {"scale": 0}),
        (ValueError, "scale must be finite and not 0, got inf", (4, 5), {"scale": math.inf}),
        (ValueError, "scale must be finite and not 0, got nan", (4, 5), {"scale": math.nan}),
        (TypeError, "scale must be a number, got str", (4, 5), {"scale": "1"}),
        (ValueError, "device must be a CPU or a CUDA device", (4, 5), {"device": "meta"}),
    ],
)
def test_constructor_refuses(
    error: type[Exception], message: str, arguments: tuple, options: dict[str, Any]
) -> None:
    refused(error, f"LeastSquares: {message}", lambda: LeastSquares(*arguments, **options))
    if not message.startswith(("d_model", "device")):
        hidden, tokens = batch()
        call = lambda: least_squares(hidden, tokens % 2, arguments[1], **options)  # noqa: E731
        refused(error, f"least_squares: {message}", call)


def test_mse_refuses(solver: LeastSquares) -> None:
    weight = torch.zeros(VOCABULARY, WIDTH)
    for error, message, bad in (
        (ValueError, "weight must be [10, 4], got [4, 10]", weight.T),
        (TypeError, "weight must be a tensor, got list", weight.tolist()),
        (TypeError, "weight must be float32, float64, bfloat16", weight.long()),
        (ValueError, "weight must be on a CPU or a CUDA device", weight.to("meta")),
    ):
        refused(error, f"LeastSquares.mse: {message}", lambda bad=bad: solver.mse(bad))


def test_merge_refuses(solver: LeastSquares) -> None:
    sums = Unchanged(solver)
    message = "LeastSquares.merge: other must be a LeastSquares, got dict"
    refused(TypeError, message, lambda: solver.merge(solver.state_dict()))
    message = "LeastSquares.merge: other must have sums of the shape [10, 4], got [11, 4]"
    refused(ValueError, message, lambda: solver.merge(LeastSquares(WIDTH, 11)))
    sums.check()


def test_load_state_dict_refuses(solver: LeastSquares) -> None:
    sums, good = Unchanged(solver), LeastSquares(WIDTH, VOCABULARY).state_dict()
    for error, message, bad in (
        (ValueError, "state must have the keys", {"gram": good["gram"]}),
        (ValueError, "state['gram'] must be float64 of", good | {"gram": torch.zeros(5, 5)}),
        (ValueError, "state['sums'] must be float64 of", good | {"sums": good["sums"].float()}),
        (TypeError, "state['sums'] must be a tensor", good | {"sums": [1.0]}),
        (ValueError, "state['count'] must be an int of 0 or more", good | {"count": -1}),
        (ValueError, "state['count'] must be an int of 0 or more", good | {"count": 2.5}),
    ):
        call = lambda bad=bad: solver.load_state_dict(bad)  # noqa: E731
        refused(error, f"LeastSquares.load_state_dict: {message}", call)
    sums.check()


def test_all_reduce_refuses_where_nothing_is_initialised(solver: LeastSquares) -> None:
    message = "LeastSquares.all_reduce: group must be of an initialised torch.distributed, got None"
    refused(ValueError, message, solver.all_reduce)


@pytest.mark.gpu
def test_another_device_is_refused(solver: LeastSquares) -> None:
    hidden, tokens = batch()
    sums = Unchanged(solver)
    on_gpu = LeastSquares(WIDTH, VOCABULARY, device="cuda")
    message = "LeastSquares.update: hidden must be on the device cpu, got cuda:0"
    refused(ValueError, message, lambda: solver.update(hidden.cuda(), tokens.cuda()))
    message = "LeastSquares.update: tokens must be on the device cpu, got cuda:0"
    refused(ValueError, message, lambda: solver.update(hidden, tokens.cuda()))
    message = "LeastSquares.merge: other must be on the device cpu, got cuda:0"
    refused(ValueError, message, lambda: solver.merge(on_gpu))
    sums.check()
