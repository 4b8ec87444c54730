"""The CUDA path compiled for the host, as fixtures, and what its tests share.

In the SIMT harness (tests/simt) copies are late and allocations obey the rules of graph capture.
fusedstep._C.use_device puts the module in the CPU's place, so that the ordinary ops run the CUDA
path over CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import fusedstep
from fusedstep import _C
from fusedstep.optim.optimizer import FusedOptimizer
from tests.support import host_module
from tests.support.tensors import assert_same_bits, make_params

SHAPES = ((70, 300), (), (0, 3), (5,), (33000,), (16, 16))


@pytest.fixture(scope="session")
def simt() -> Any:
    """The module of tests/simt/torch/module.cpp."""
    compiler = host_module.find_compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    return host_module.load(compiler)


@contextmanager
def using(capsule: Any) -> Iterator[None]:
    """Ops on CPU tensors call this device: `simt.DEVICE`, or `_C.DEVICE` for the CPU's own."""
    previous = _C.use_device("cpu", capsule)
    try:
        yield
    finally:
        _C.use_device("cpu", previous)


def on_cpu() -> Any:
    """The CPU's own device, where `on_simt` has put another in its place."""
    return using(_C.DEVICE)


@pytest.fixture
def on_simt(simt: Any) -> Iterator[Any]:
    """Makes every op on CPU tensors run the CUDA path; the module is what tests control it by."""
    simt.seed(1)
    simt.finish()
    simt.fail_next("")
    simt.gives_up(-1)
    simt.libraries_missing(False)
    with using(simt.DEVICE):
        yield simt


def twins(
    dtype: torch.dtype = torch.float32,
    optimizer: Callable[..., FusedOptimizer] = fusedstep.AdamW,
    **options: Any,
) -> tuple[list[list[torch.Tensor]], list[FusedOptimizer]]:
    """Two optimizers over equal parameters: for the CUDA path and for the CPU's."""
    params = [make_params(*SHAPES, dtype=dtype, seed=3) for _ in range(2)]
    groups = [
        [{"params": p[:3]}, {"params": p[3:], "lr": 1e-2, "weight_decay": 0.5}] for p in params
    ]
    return params, [optimizer(g, **options) for g in groups]


def step_on_cpu(optimizer: FusedOptimizer) -> None:
    with on_cpu():
        optimizer.step()


def assert_twins(params: list[list[torch.Tensor]], optimizers: list[FusedOptimizer]) -> None:
    for i, (a, b) in enumerate(zip(*params, strict=True)):
        assert_same_bits(a, b, f"parameter {i}")
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True)]
        for name in states[1]:
            assert_same_bits(states[0][name], states[1][name], f"{name} of parameter {i}")
