"""The kernels compiled for one instruction set at a time: the same bits from each, and from _C."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fusedstep
from fusedstep.optim.hyperparameters import in_order
from python.buildtools.flags import CXX_FLAGS
from python.buildtools.rules import write_sources
from tests.support.compiler import link
from tests.support.tensors import DTYPES, assert_same_bits, make_params, name_of, set_grads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets of x86-64"),
    pytest.mark.skipif(not shutil.which("g++"), reason="needs g++"),
    pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump"),
]

ROOT = Path(__file__).resolve().parents[2]
# The compiler's options; the widest registers that it must use then, and the flags of a CPU
# that has them all.
SETS = {
    "scalar": (["-march=x86-64", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"], "xmm", ()),
    "x86-64": (["-march=x86-64"], "xmm", ()),
    "x86-64-v3": (["-march=x86-64-v3"], "ymm", ("avx2", "fma", "bmi2", "f16c")),
    "x86-64-v4": (
        ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "zmm",
        ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    ),
}
NORMS = {0: 2.0, 1: 1.0, 2: float("inf")}  # kernels/optim/norm.h's enum Norm
OPTIONS = {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "max_norm": 1.0}


def cpu_flags() -> set[str]:
    return set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())


@pytest.fixture(scope="module", params=SETS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of the kernels for one instruction set alone."""
    options, _, needed = SETS[request.param]
    lacking = set(needed) - cpu_flags()
    if lacking:
        pytest.skip(f"this CPU lacks {', '.join(sorted(lacking))}")
    library = tmp_path_factory.mktemp("isa") / f"{request.param}.so"
    sources = [ROOT / "tests/support/isa.cpp", *(ROOT / "kernels").glob("*/*.cpp")]
    # Muon's products ask for AVX-512 themselves, and their bits depend on it.
    sources = [path for path in sources if path.name != "symmetric.cpp"]
    sources += write_sources("cpu", library.parent / "rules")
    # Without clones there is nothing for the loader to choose from; and without the fused
    # multiply-adds of exact products (tests/linalg/test_gram.py) and of what LAPACK would do
    # elsewhere, none may be left.
    empty = ("CLONES", "EXACT_PRODUCTS", "FUSED")
    defines = [f"-DFUSEDSTEP_{macro}=" for macro in empty]
    command = ["g++", *CXX_FLAGS, *options, *defines, "-fPIC", "-fvisibility=default"]
    link([*command, f"-I{ROOT}"], sources, library, ["-shared"])
    return library


def step_by(
    library: Path,
    param: Tensor,
    states: list[Tensor],
    step: Tensor,
    norm: int,
    optimizer: fusedstep.AdamW,
) -> float:
    """One update of `param` in place, as `optimizer` clips and steps; the norm of its gradient."""
    function = ctypes.CDLL(str(library)).clip_and_adam
    function.restype = ctypes.c_double
    pointers = (ctypes.c_void_p * 3)(*[state.data_ptr() for state in states])
    values = in_order("adam", [optimizer._values(optimizer.param_groups[0], 0)])
    return function(
        ctypes.c_void_p(param.data_ptr()), ctypes.c_void_p(param.grad.data_ptr()), pointers,
        ctypes.c_void_p(step.data_ptr()), ctypes.c_int64(param.numel()),
        1 + DTYPES.index(param.dtype), 1 + DTYPES.index(param.grad.dtype), norm,
        (ctypes.c_double * len(values))(*values), ctypes.c_double(optimizer.max_norm),
    )  # fmt: skip


def test_compiler_used_the_registers_of_the_set_and_no_wider(kernels: Path) -> None:
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(kernels)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    widest = SETS[kernels.stem][1]
    assert f"%{widest}" in listing
    for wider in {"xmm": ("ymm", "zmm"), "ymm": ("zmm",), "zmm": ()}[widest]:
        assert f"%{wider}" not in listing
    assert not re.search(r"\bvfn?m(add|sub)", listing), "a contracted multiply-add"
    packed = re.search(r"\bv?mulps\b", listing) is not None
    assert packed == (kernels.stem != "scalar")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_are_those_of_the_module(
    dtype: torch.dtype, grad_dtype: torch.dtype, norm: int, kernels: Path
) -> None:
    (param,) = make_params((40_007,), dtype=dtype)
    optimizer = fusedstep.AdamW([param], **OPTIONS, norm_type=NORMS[norm])
    other = param.detach().clone().requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    states = [torch.zeros_like(param, dtype=wide) for _ in range(3)]
    step = torch.zeros(())
    for i in range(2):
        set_grads([param, other], seed=i, dtype=grad_dtype)
        other.grad.copy_(param.grad)
        optimizer.step()
        of_library = step_by(kernels, other, states, step, norm, optimizer)
        expected = torch.tensor(of_library, dtype=torch.float64).float()
        assert_same_bits(optimizer.grad_norm, expected, "norm")
        assert_same_bits(param, other, "parameter")
    state = optimizer.state[param]
    for mine, name in zip(states, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), strict=True):
        assert_same_bits(state[name], mine, name)
    assert float(step) == 2


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name_of)
def test_softmax_has_the_bits_of_the_module(dtype: torch.dtype, kernels: Path) -> None:
    logits = 5 * torch.randn(3, 5000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    tokens, expected = torch.tensor([7, 0, 4999]), logits.clone()
    numbers = torch.empty(3, 4, dtype=torch.float64)
    ctypes.CDLL(str(kernels)).softmax_directions(
        ctypes.c_void_p(logits.data_ptr()), 1 + DTYPES.index(dtype), ctypes.c_int64(3),
        ctypes.c_int64(5000), ctypes.c_void_p(tokens.data_ptr()),
        ctypes.c_void_p(numbers.data_ptr()),
    )  # fmt: skip
    assert_same_bits(numbers, torch.ops.fusedstep.softmax_directions_(expected, tokens), "numbers")
    assert_same_bits(logits, expected, "directions")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=name_of)
def test_tiny_inverses_have_the_bits_of_the_module(dtype: torch.dtype, kernels: Path) -> None:
    A = torch.randn(21, 13, 9, dtype=dtype, generator=torch.Generator().manual_seed(0))
    A[::2, :, 0] = A[::2, :, 1]  # by Jacobi; the others by QR
    tolerances = torch.tensor([0.0, 1e-6], dtype=torch.float64)
    ours = torch.ops.fusedstep.pinv_tiny(A, *(t.expand(21) for t in tolerances), False)
    theirs = [torch.empty_like(result) for result in ours]
    ctypes.CDLL(str(kernels)).tiny_pinv(
        ctypes.c_void_p(A.data_ptr()), 1 + DTYPES.index(dtype), 13, 9, ctypes.c_int64(21),
        ctypes.c_void_p(tolerances.data_ptr()), *(ctypes.c_void_p(t.data_ptr()) for t in theirs),
    )  # fmt: skip
    assert ours[1].unique().tolist() == [8, 9]
    for name, a, b in zip(("P", "rank", "code", "rcond"), theirs, ours, strict=True):
        assert_same_bits(a, b, name)
