"""The caller's global switches, set aside while matrices are multiplied, and put back after.

Autograd and autocast are thread-local. The precision of float32 products is not: PyTorch has it
for the whole process only, and through two interfaces, torch.set_float32_matmul_precision and
torch.backends.*.fp32_precision, which raise if one is read where the other was set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# Whose products: those of GPUs and those of CPUs.
PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
UNROUNDED = ("none", "ieee")  # what their fp32_precision says of products in float32


def numerical(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function outside of autograd and of all switches that would round its products."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        with torch.no_grad(), _products_in_float32():
            if not any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
                return function(*args, **options)  # entering autocast takes longer than a product
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return function(*args, **options)

    return run


_lock = Lock()
_inside = 0  # calls, of all threads
_put_back: Callable[[], None] | None = None


@contextmanager
def _products_in_float32() -> Iterator[None]:
    """No TF32 or bfloat16 in float32 products; nothing is set if the caller allows neither.

    The last call to leave puts the switch back, so that calls in several threads may overlap. Other
    threads' products are in float32 meanwhile too; what they set meanwhile is overwritten.
    """
    global _inside, _put_back
    with _lock:
        if _inside == 0:
            _put_back = _forbid_rounding()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _put_back is not None:
                _put_back()


def _forbid_rounding() -> Callable[[], None] | None:
    """Sets the switch, through both interfaces if both can be read; returns how to put it back."""
    before = [products.fp32_precision for products in PRODUCTS]
    if all(precision in UNROUNDED for precision in before):
        return None
    try:
        summary = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller uses torch.backends, of which this is no summary
        summary = None
    if summary is not None:
        torch.set_float32_matmul_precision("highest")
    for products in PRODUCTS:
        products.fp32_precision = "ieee"

    def put_back() -> None:
        if summary is not None:
            torch.set_float32_matmul_precision(summary)
        for products, precision in zip(PRODUCTS, before, strict=True):
            products.fp32_precision = "none"  # which means that of the backend, or of all
            if products.fp32_precision != precision:
                products.fp32_precision = precision

    return put_back
