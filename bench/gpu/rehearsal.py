"""Runs a program written for a GPU on a machine without one: a rehearsal.

    python -m bench.gpu.rehearsal MODULE ARGS...
    python -m bench.gpu.rehearsal pytest -m gpu tests/optim

"cuda" is the host: fusedstep's ops on CUDA tensors run the source of csrc/cuda and of the CUDA
kernels in the SIMT harness (tests/simt), torch's own ops its CPU kernels; CPU tensors stay what
they are. So the two devices' bits come from two paths, as on a GPU. What it cannot show: the real
cuBLAS and cuSOLVER, races with the host and between streams, speed.

It is a plugin of pytest too (-p bench.gpu.rehearsal), for the processes that pytest-xdist starts.
"""

from __future__ import annotations

import runpy
import sys
from functools import cache
from typing import Any

import pytest

from bench.gpu import host_cuda
from fusedstep import _C, build
from tests.support import host_module

# Tests that are left out of a rehearsal, by how their names begin, and why.
TOO_LARGE = "the harness would take minutes"
NOT_REHEARSED = {
    "tests/optim/test_cuda.py::test_norm_of_more_chunks_than_can_run_at_once": TOO_LARGE,
    "tests/optim/test_cuda.py::test_same_bits_every_time": TOO_LARGE,
    "tests/linalg/test_gram.py::test_on_a_gpu_to_rounding[shape0": TOO_LARGE,
    "tests/linalg/test_gram.py::test_on_a_gpu_to_rounding[shape2": TOO_LARGE,
    "tests/linalg/test_cuda_linalg.py::test_batches_beyond_what_cusolver_takes": TOO_LARGE,
    "tests/linalg/test_cuda_linalg.py::test_threads_and_streams_do_not_disturb_one_another": (
        "the harness runs on one thread"
    ),
}


@cache
def take() -> Any:
    """From here on this process has a GPU of a kind; the harness's module."""
    compiler = host_module.find_compiler()
    if compiler is None:
        raise SystemExit("bench.gpu.rehearsal: needs a C++ compiler on PATH")
    host = host_module.load(compiler)
    host.host_work(0)  # a cuSOLVER whose work graphs can capture
    host_cuda.take(host)
    _C.use_device("cuda", host.DEVICE)
    build.CUDA_REASON = ""
    return host


def pytest_configure(config: pytest.Config) -> None:
    take()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests out."""
    left_out = [item for item in items if item.nodeid.startswith(tuple(NOT_REHEARSED))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m bench.gpu.rehearsal MODULE ARGS...")
    take()
    _, module, *arguments = sys.argv
    if module == "pytest":
        # Its own assertions, which it warns of, are no test's.
        silent = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        arguments += ["-p", "bench.gpu.rehearsal", *silent]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from bench.gpu import rehearsal  # one module, not a second one named __main__

    rehearsal.main()
