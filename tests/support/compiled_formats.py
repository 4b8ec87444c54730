"""kernels/common's generator and number formats, compiled alone and called on NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from python.buildtools.flags import CXX_FLAGS
from tests.reference.quantize import BLOCK

ROOT = Path(__file__).resolve().parents[2]
# The loops as the CPU at hand runs them best, as any of its kind does, and one element after the
# other.
LOOPS = {
    "vector": [],
    "baseline": ["-DFUSEDSTEP_CLONES="],
    "scalar": ["-DFUSEDSTEP_CLONES=", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"],
}

_SIGN = {np.dtype(np.int8): "signed", np.dtype(np.uint8): "unsigned"}


@functools.cache
def library(loops: str) -> ctypes.CDLL:
    """tests/support/formats.cpp for one of LOOPS; skips the test where there is no compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler on PATH")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "formats.so"
        command = [compiler, *CXX_FLAGS, *LOOPS[loops], "-shared", "-fPIC", f"-I{ROOT}"]
        subprocess.run([*command, ROOT / "tests/support/formats.cpp", "-o", path], check=True)
        loaded = ctypes.CDLL(str(path))
    loaded.count_lost_floats.restype = ctypes.c_int64
    return loaded


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """To the data of a contiguous array."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def random_bits(
    loops: str, how: str, seed: int, array: int, step: int, begin: int, size: int
) -> np.ndarray:
    """16 bits for each of the elements [begin, begin + size), by random_by_tile or _by_group."""
    bits = np.full(size + 8, 0xABCD, np.uint16)
    getattr(library(loops), how)(
        ctypes.c_uint64(seed), ctypes.c_uint32(array), ctypes.c_uint32(step),
        ctypes.c_int64(begin), ctypes.c_int(size), pointer(bits),
    )  # fmt: skip
    assert (bits[size:] == 0xABCD).all(), "written past the end"
    return bits[:size]


def elementwise(loops: str, name: str, inputs: list[np.ndarray], outputs: list[type]):
    """Calls a function of (inputs, outputs, size)."""
    results = [np.empty(inputs[0].shape, dtype) for dtype in outputs]
    size = ctypes.c_int64(inputs[0].size)
    getattr(library(loops), name)(*map(pointer, (*inputs, *results)), size)
    return results


def encode(
    loops: str, x: np.ndarray, random16: np.ndarray, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of float32 `x`: signed codes for np.int8, unsigned ones for np.uint8."""
    codes, scales = np.empty(x.size, dtype), np.empty(-(-x.size // BLOCK), np.float32)
    function: Callable = getattr(library(loops), f"encode_{_SIGN[codes.dtype]}")
    function(*map(pointer, (x, random16, codes, scales)), ctypes.c_int(x.size))
    return codes, scales


def decode(loops: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 from codes, signed or unsigned by their type."""
    x = np.empty(codes.size, np.float32)
    function: Callable = getattr(library(loops), f"decode_{_SIGN[codes.dtype]}")
    function(*map(pointer, (codes, scales, x)), ctypes.c_int(codes.size))
    return x
