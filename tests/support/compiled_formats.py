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
# The loops as the CPU at hand runs them best, and one element after the other.
LOOPS = {"vector": [], "scalar": ["-DFUSEDSTEP_CLONES=", "-fno-tree-vectorize"]}

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


def philox(loops: str, counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """As the reference's."""
    words = np.empty_like(counters)
    library(loops).philox_words(
        pointer(counters), ctypes.c_uint32(key[0]), ctypes.c_uint32(key[1]), pointer(words),
        ctypes.c_int64(len(counters)),
    )  # fmt: skip
    return words


def random_bits(loops: str, how: str, seed: int, array: int, step: int, first: int, groups: int):
    """16 bits for each element of some groups, by random_by_tile or random_by_group."""
    bits = np.full(groups * 8 + 8, 0xABCD, np.uint16)
    getattr(library(loops), how)(
        ctypes.c_uint64(seed), ctypes.c_uint32(array), ctypes.c_uint32(step),
        ctypes.c_uint64(first), ctypes.c_int(groups), pointer(bits),
    )  # fmt: skip
    assert (bits[groups * 8 :] == 0xABCD).all(), "written past the end"
    return bits[: groups * 8]


def elementwise(loops: str, name: str, inputs: list[np.ndarray], outputs: list[type]):
    """Calls a function of (inputs, outputs, size)."""
    results = [np.empty(inputs[0].shape, dtype) for dtype in outputs]
    size = ctypes.c_int64(inputs[0].size)
    getattr(library(loops), name)(*map(pointer, (*inputs, *results)), size)
    return results


def _blocks(size: int) -> list[slice]:
    return [slice(begin, min(begin + BLOCK, size)) for begin in range(0, size, BLOCK)]


def encode(loops: str, x: np.ndarray, random16: np.ndarray, dtype: type) -> np.ndarray:
    """Codes of float32 `x`: signed ones for np.int8, unsigned ones for np.uint8."""
    codes = np.empty(x.size, dtype)
    function: Callable = getattr(library(loops), f"encode_{_SIGN[codes.dtype]}_block")
    for block in _blocks(x.size):
        largest = ctypes.c_float(np.abs(x[block]).max())
        size = block.stop - block.start
        arrays = pointer(random16[block]), pointer(codes[block])
        function(pointer(x[block]), largest, *arrays, ctypes.c_int(size))
    return codes


def decode(loops: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 from codes, signed or unsigned by their type."""
    x = np.empty(codes.size, np.float32)
    function: Callable = getattr(library(loops), f"decode_{_SIGN[codes.dtype]}_block")
    for block, scale in zip(_blocks(codes.size), scales, strict=True):
        size = block.stop - block.start
        function(pointer(codes[block]), ctypes.c_float(scale), pointer(x[block]), size)
    return x
