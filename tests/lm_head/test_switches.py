"""The caller's global switches have no effect on the last layer, and stay as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from fusedstep import lm_head
from fusedstep.switches import PRODUCTS, numerical
from tests.lm_head.test_newton import METHODS
from tests.support.last_layer import regression
from tests.support.tensors import assert_same_bits

cuda, mkldnn = PRODUCTS
SWITCHES = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "cuda tf32": lambda: setattr(cuda, "fp32_precision", "tf32"),
    "mkldnn bf16": lambda: setattr(torch.backends.mkldnn, "fp32_precision", "bf16"),
    "mkldnn.matmul bf16": lambda: setattr(mkldnn, "fp32_precision", "bf16"),
    "both interfaces": lambda: (
        torch.set_float32_matmul_precision("medium"),
        setattr(cuda, "fp32_precision", "ieee"),
    ),
}
each_switch = pytest.mark.parametrize("switch", SWITCHES.values(), ids=list(SWITCHES))


@pytest.fixture(autouse=True)
def _switches_as_before():
    # torch's test utilities, which other tests import, freeze some of the switches.
    with torch.backends.__allow_nonbracketed_mutation():
        yield
        torch.set_float32_matmul_precision("highest")
        for backend in (torch.backends, torch.backends.mkldnn, *PRODUCTS):
            backend.fp32_precision = "none"


def seen() -> list[str]:
    """Every switch, through both interfaces."""
    values = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        *(lambda backend=backend: backend.fp32_precision for backend in PRODUCTS),
    ):
        try:
            values.append(str(read()))
        except RuntimeError:  # torch's own, where the two interfaces disagree
            values.append("unreadable")
    return values


@numerical
def inside(error: Exception | None = None) -> list[str]:
    if error is not None:
        raise error
    return [backend.fp32_precision for backend in PRODUCTS]


@each_switch
def test_products_are_in_float32_inside_and_the_switches_are_put_back(switch) -> None:
    switch()
    before = seen()
    assert set(inside()) <= {"none", "ieee"}
    assert seen() == before
    with pytest.raises(ZeroDivisionError):
        inside(ZeroDivisionError())
    assert seen() == before


def test_a_switch_that_follows_another_still_does_so_after_the_call() -> None:
    torch.backends.fp32_precision = "tf32"
    inside()
    assert [backend.fp32_precision for backend in PRODUCTS] == ["tf32", "tf32"]
    torch.backends.fp32_precision = "ieee"
    assert [backend.fp32_precision for backend in PRODUCTS] == ["ieee", "ieee"]


def test_calls_in_two_threads_may_overlap() -> None:
    torch.set_float32_matmul_precision("medium")
    before, entered, left = seen(), Barrier(2), Barrier(2)

    @numerical
    def first() -> None:
        entered.wait()

    @numerical
    def second() -> list[str]:
        entered.wait()
        left.wait()  # for the first to have put back what it found
        return [backend.fp32_precision for backend in PRODUCTS]

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(second)
        pool.submit(lambda: (first(), left.wait())).result()
        assert slow.result() == ["ieee", "ieee"]
    assert seen() == before


def test_no_switch_changes_a_result() -> None:
    problem = regression(40, 32, 80, dtype=torch.float32)
    weight, hidden, tokens = problem

    def results() -> list[torch.Tensor]:
        solved = [method(*problem, loss_constant=0.5).weight for method in METHODS]
        return [*solved, torch.tensor(lm_head.fit_temperature(hidden, tokens, weight)).double()]

    def check() -> None:
        for result, plain in zip(results(), expected, strict=True):
            assert_same_bits(result, plain)

    expected = results()
    torch.set_float32_matmul_precision("medium")  # bfloat16 on CPUs that have it
    check()
    torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", torch.bfloat16):
        check()
    with torch.device("meta"):
        moved = [method(*problem, loss_constant=0.5).weight for method in METHODS]
    for result, plain in zip(moved, expected, strict=False):
        assert_same_bits(result, plain)
