"""The checker of compiled CUDA kernels: what it reads, and which planted faults it finds."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from python.buildtools import cuda
from python.buildtools.rules import write_sources
from tests.cuda import nvcc, ptx, report, sass
from tests.cuda.expected import ARCH, ARCHS, Expected, read_table, table_text
from tests.cuda.verdict import COUNTS, Kernel, counted, faults, readable, repeated, worse

ROOT = Path(__file__).resolve().parents[2]
SIGNATURE = (
    "void fusedstep::cuda::step_kernel<fusedstep::adam::Rule, double, false>"
    "(fusedstep::Table, fusedstep::Clip, long, unsigned int*)"
)
PTXAS = """ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    24 bytes stack frame, 16 bytes spill stores, 120 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 24 bytes cumulative stack size, 160 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""
PTX = """
.visible .entry first(
	.param .u64 first_param_0
)
{
	.reg .f32 	%f<4>;
	mul.rn.f32 	%f1, %f2, %f3;
}
.visible .entry second(
)
{
	.loc	1 20 5
$L__BB1_2:
	add.rn.f32 	%f1, %f2, %f3;
	@%p1 add.rn.f32 	%f2, %f1, %f3;
	st.global.f32 	[%rd1], %f2;
}
"""
# A loop around another, each with a load; then the branch to itself that ends every kernel.
NESTED = [
    {"opcode": "LDG.E", "operands": "R2,desc[UR8][R2.64]"},
    {"opcode": "LDG.E.128", "operands": "R4,desc[UR8][R12.64]"},
    {"opcode": "STG.E.64", "operands": "desc[UR8][R12.64],R4"},
    {"predicate": "@P0", "opcode": "BRA", "operands": "P1,0x10"},
    {"opcode": "LDL.64", "operands": "R8,[R1]"},
    {"predicate": "@P1", "opcode": "BRA", "operands": "0x0"},
    {"opcode": "EXIT", "operands": ""},
    {"opcode": "BRA", "operands": "0x70"},
]


def loop(**accesses: int) -> sass.Loop:
    """A loop from names such as LDG16=4."""
    split = {(name.rstrip("0123456789"), name.lstrip("LDSTG")): n for name, n in accesses.items()}
    return sass.Loop(sass.Counter({(name, int(width)): n for (name, width), n in split.items()}))


# Parameter, gradient and two states: by packs of four elements, and one by one.
GOOD = Kernel(
    "step<adam, float32, uniform>",
    nvcc.Resources(64, 0, 0, 0, 80),
    sass.Code(
        [replace(loop(LDG16=4, LDG4=16, STG16=3, STG4=12), instructions=200)],
        loop(LDG16=4, LDG4=20, STG16=3).accesses,
        500,
    ),
)


PACKS_OF, OF_LOOP = "of 16 bytes:", "for each array of a main loop"


def test_names_are_readable() -> None:
    assert readable(SIGNATURE) == "step<adam, float64, mixed>"
    assert readable("fusedstep::cuda::(anonymous namespace)::fold_kernel(long)") == "fold"
    anonymous = "void fusedstep::cuda::(anonymous namespace)::norm_kernel<(fusedstep::Norm)2>(int*)"
    assert readable(anonymous) == "norm<inf>"


def test_ptxas_report_is_read() -> None:
    assert nvcc.parse_resources(PTXAS) == {
        "first": nvcc.Resources(64, 24, 16, 120, 160),
        "second": nvcc.Resources(12, 0, 0, 0, 0),
    }


@pytest.mark.parametrize(
    ("opcode", "access"),
    [
        ("LDG.E.128.CONSTANT", ("LDG", 16)),
        ("STG.E.U16", ("STG", 2)),
        ("LDG.E.S8", ("LDG", 1)),
        ("LD.E", ("LD", 4)),
        ("STL.64", ("STL", 8)),
        ("LDC.64", None),
        ("LDS.128", None),
        ("LDGSTS.E.128", None),
    ],
)
def test_accesses_are_told_apart(opcode: str, access: tuple[str, int] | None) -> None:
    assert sass.access_of(opcode) == access


def test_only_innermost_loops_count() -> None:
    code = sass.read_code([*NESTED, {"opcode": "NOP", "operands": ""}])
    assert code.loops == [replace(loop(LDG16=1, STG8=1), instructions=3)]
    assert code.accesses == loop(LDG4=1, LDG16=1, STG8=1, LDL8=1).accesses
    assert (code.instructions, code.local_accesses) == (len(NESTED), 1)


def test_without_a_main_loop_packs_outside_of_loops_count() -> None:
    narrow = [line | {"opcode": line["opcode"].replace(".128", "")} for line in NESTED]
    assert [inner.accesses for inner in sass.read_code(narrow).loops] == [
        loop(LDG4=1, STG8=1).accesses
    ]
    (wide,) = sass.read_code([{"opcode": "LDG.E.128", "operands": ""}, *NESTED[-2:]]).loops
    assert wide == replace(loop(LDG16=1), instructions=3)
    assert wide.is_main


def test_good_kernel_passes() -> None:
    assert faults(GOOD) == []
    assert worse(GOOD, GOOD.summary()) == []
    assert worse(GOOD, GOOD.summary() | {"registers": 70, "wide_loads": 3}) == []
    without_loops = Kernel("unit_matrices", GOOD.resources, sass.Code([]))
    assert faults(without_loops) == [], "a thread that takes one element needs no pack"


@pytest.mark.parametrize(
    ("resources", "loops", "message"),
    [
        ({"spill_stores": 8}, None, "spill stores, bytes: must be 0, got 8"),
        ({"stack": 16}, None, "stack frame, bytes: must be 0, got 16"),
        ({}, [loop(LD16=4, STG16=3)], "generic accesses in loops: must be 0, got 4"),
        ({}, [loop(LDG16=3, LDG4=16)], f"loads {PACKS_OF} must be 1 {OF_LOOP}, got 3 for 4"),
        (
            {},
            [loop(LDG16=4, STG16=2, STG4=12)],
            f"stores {PACKS_OF} must be 1 {OF_LOOP}, got 2 for 3",
        ),
        ({}, [loop(LDG4=16, STG4=12)], "loops with accesses of 16 bytes: must be there, got none"),
    ],
)
def test_each_fault_is_named(
    resources: dict[str, int], loops: list[sass.Loop] | None, message: str
) -> None:
    code = GOOD.code if loops is None else sass.Code(loops)
    kernel = Kernel(GOOD.name, replace(GOOD.resources, **resources), code)
    assert faults(kernel) == [f"{GOOD.name} on sm_90: {message}"]


@pytest.mark.parametrize(
    ("name", "good", "narrow"),
    [
        # Five arrays of any type; then the bytes of one are no longer stored by packs.
        ("step<adam, float32, mixed>", {"STG16": 15, "STG8": 5, "STG2": 40, "STG1": 40}, "STG1"),
        ("step<adam, float64, mixed>", {"STG16": 15, "STG4": 25, "STG1": 20}, "STG1"),
        ("step<adam, float64, uniform>", {"STG16": 5, "STG8": 10}, "STG8"),
    ],
)
def test_arrays_are_counted_by_their_single_elements(
    name: str, good: dict[str, int], narrow: str
) -> None:
    def lines(accesses: dict[str, int]) -> list[str]:
        return faults(Kernel(name, GOOD.resources, sass.Code([loop(**accesses)])))

    assert lines(good) == []
    assert len(lines(good | {narrow: 2 * good[narrow]})) == 1


def test_norm_reads_packs_alone() -> None:
    bad = Kernel("norm<2>", GOOD.resources, sass.Code([loop(LDG16=3, LDG4=1)]))
    assert faults(replace(bad, code=sass.Code([loop(LDG16=4), loop(LDG4=4)]))) == []
    assert faults(bad) == [
        "norm<2> on sm_90: narrowest load in a main loop: must be 16 bytes, got 4"
    ]


@pytest.mark.parametrize(
    "change", [{"registers": 63}, {"shared": 16}, {"main_loops": 2}, {"wide_stores": 4}]
)
def test_getting_worse_than_expected_is_named(change: dict[str, int]) -> None:
    lines = worse(GOOD, GOOD.summary() | change)
    assert len(lines) == 1
    assert f"{next(iter(change))}: expected" in lines[0]
    assert "--update" in worse(GOOD, None)[0]


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize(("factor", "named"), [(1, 0), (1.01, 0), (0.99, 0), (1.05, 1), (0.95, 1)])
def test_counts_may_leave_what_is_kept_by_the_margin(key: str, factor: float, named: int) -> None:
    kept = GOOD.summary()
    kept[key] = kept[key] * factor
    lines = counted(GOOD, kept)
    assert len(lines) == (named or (factor != 1 and COUNTS[key] == 0))
    assert worse(GOOD, kept) == []
    assert all(f"{key}: expected" in line and "--update" in line for line in lines)


@pytest.mark.parametrize(
    ("opcode", "found"),
    [
        *((name, False) for name in ("add.rn.f32", "mul.rn.f64", "sub.rn.f32", "div.rn.f32")),
        *((name, False) for name in ("sqrt.rn.f64", "rcp.rn.f32", "max.NaN.f32", "cvt.rn.f32.f64")),
        *(
            (name, False)
            for name in ("mad.lo.s32", "add.s64", "mul.wide.u32", "atom.global.add.u32")
        ),
        ("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64", False),
        *((name, True) for name in ("fma.rn.f32", "fma.rn.f64", "mad.rn.f32", "fma.rn.f16x2")),
        *((name, True) for name in ("add.f32", "mul.f64", "sub.f32", "add.rn.ftz.f32")),
        *((name, True) for name in ("div.full.f32", "div.approx.f32", "sqrt.approx.ftz.f32")),
        *((name, True) for name in ("rcp.approx.ftz.f64", "rsqrt.approx.f32", "ex2.approx.f32")),
        *((name, True) for name in ("lg2.approx.f32", "sin.approx.f32", "tanh.approx.f32")),
    ],
)
def test_arithmetic_unlike_a_cpus_is_told_apart(opcode: str, found: bool) -> None:
    assert ptx.is_inexact(opcode) == found
    text = PTX.replace("add.rn.f32", opcode)
    assert ptx.inexact(text) == ({"second": Counter({opcode: 2})} if found else {})


def test_arithmetic_unlike_a_cpus_is_a_fault() -> None:
    fused = replace(GOOD, inexact=Counter({"fma.rn.f32": 3}))
    assert faults(fused) == [f"{GOOD.name} on sm_90: fma.rn.f32, unlike a CPU: must be 0, got 3"]


def test_registers_are_kept_for_every_architecture() -> None:
    """A column that was not compiled keeps what it had, and a new kernel has a dash there."""
    table = {"step<adam, float32, mixed>": dict.fromkeys(ARCHS, 128), "norm<2>": {ARCH: 64}}
    text = table_text("", ARCHS, table)
    assert [line.split()[-1] for line in text.splitlines()] == [ARCHS[-1], "-", "128"]
    assert read_table(text) == ("", table)


def test_an_update_writes_what_was_compiled_and_nothing_else(tmp_path: Path) -> None:
    for name in ("sm_90.txt", "registers.txt"):
        shutil.copy(Path(report.__file__).with_name(name), tmp_path)
    expected = Expected(tmp_path)
    before = expected.registers[GOOD.name]
    fewer = replace(GOOD, resources=replace(GOOD.resources, registers=9))
    fresh = replace(GOOD, name="step<fresh, float32, uniform>")
    expected.update("13.9", [fewer, fresh])
    again = Expected(tmp_path)
    assert again.release == "13.9"
    assert again.registers == {GOOD.name: before | {ARCH: 9}, fresh.name: {ARCH: 64}}
    for kernel in (fewer, fresh):
        assert worse(kernel, again.of(kernel.name, ARCH)) == []
        assert worse(replace(kernel, resources=GOOD.resources), again.of(GOOD.name, ARCH))
    assert again.of(fresh.name, "sm_75") is None
    assert again.gone([fresh.name]) == [GOOD.name]


def test_both_files_keep_the_same_kernels() -> None:
    expected = Expected()
    assert expected.code.keys() == expected.registers.keys()
    assert all(ARCH in counts for counts in expected.registers.values())


def test_each_kernel_is_compiled_once() -> None:
    assert repeated([GOOD, replace(GOOD, name="other"), replace(GOOD, arch="sm_75")]) == []
    assert repeated([GOOD, GOOD]) == [
        f"{GOOD.name} on sm_90: must be compiled by one source, got 2"
    ]


def tools_lack() -> str:
    """Why the kernels cannot be compiled and disassembled here; "" where they can."""
    try:
        report.find_tools()
    except report.Missing as error:
        return str(error)
    return ""


INSTANCE = """#include "kernels/optim/step_kernel.cuh"
#include "kernels/optim/rules/adam.h"
template __global__ void fusedstep::cuda::step_kernel<fusedstep::adam::Rule, float, {uniform}>(
    const fusedstep::Table, const fusedstep::Clip, int64_t, unsigned*);
"""
BLOCKS = "(uniform ? 3 : 2)"
ADAM = "optim/rules/adam.h"
IN_PTX = "(__CUDA_ARCH__)\n  // Said in PTX"


needs_tools = pytest.mark.skipif(
    bool(tools_lack()), reason="needs nvcc and nvdisasm to compile CUDA kernels"
)


@pytest.mark.compiles
@pytest.mark.slow
@needs_tools
def test_a_source_of_tiny_inverses_compiles_its_own_kernel_alone(tmp_path: Path) -> None:
    (source,) = (path for path in write_sources("cuda", tmp_path) if "float_8" in path.stem)
    toolkit, nvdisasm = report.find_tools()
    (kernel,) = report.inspect(toolkit, nvdisasm, source, nvcc.build_flags(toolkit))
    assert kernel.name == "tiny_pinv<float32, 8>"


@pytest.mark.compiles
@pytest.mark.slow
@needs_tools
@pytest.mark.parametrize(
    ("uniform", "file", "text", "planted", "found"),
    [
        (True, "optim/step_kernel.cuh", BLOCKS, BLOCKS, []),
        (False, "optim/step_kernel.cuh", BLOCKS, BLOCKS, []),
        (True, "optim/step_kernel.cuh", BLOCKS, "8", ["spill stores", "spill loads"]),
        (False, "optim/step_kernel.cuh", BLOCKS, "3", ["spill stores", "spill loads"]),
        (
            True,
            "common/vector.cuh",
            "kAccess = 16",
            "kAccess = 4",
            ["accesses of 16 bytes: must be there"],
        ),
        (
            False,
            "common/vector.cuh",
            f"#if defined{IN_PTX}",
            f"#if 0 && defined{IN_PTX}",
            ["stores of 16"],
        ),
        (
            True,
            "optim/step_kernel.cuh",
            "arrays.grad.widen(raw_grad, g);",
            "arrays.grad.widen(raw_grad, g);"
            "if (count == n) g[0] += reinterpret_cast<const volatile T*>(arrays.grad.data)[at];",
            ["loads: expected", "loop_instructions: expected"],
        ),
        (True, "common/vector.cuh", "__isGlobal(p)", "p != nullptr", ["generic accesses in loops"]),
        (
            True,
            ADAM,
            "c.beta1 * m + ",
            "std::fma(c.beta1, m, T{0}) + ",
            ["fma.rn.f32, unlike a CPU"],
        ),
        (True, ADAM, "m / denominator", "__fdividef(m, denominator)", ["div.approx.f32, unlike"]),
    ],
)
def test_planted_faults_are_found_in_the_compiled_kernel(
    uniform: bool, file: str, text: str, planted: str, found: list[str], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    header = tmp_path / "kernels" / file
    assert text in header.read_text()
    header.write_text(header.read_text().replace(text, planted))
    source = tmp_path / "instance.cu"
    source.write_text(INSTANCE.replace("{uniform}", str(uniform).lower()))

    toolkit, nvdisasm = report.find_tools()
    flags = ["-I", str(tmp_path), *nvcc.build_flags(toolkit)]
    (kernel,) = report.inspect(toolkit, nvdisasm, source, flags)
    expected = Expected()
    kept = expected.of(kernel.name, ARCH)
    lines = faults(kernel) + worse(kernel, kept)
    if cuda.toolkit_version(toolkit) == expected.release:
        lines += counted(kernel, kept)
    elif any("expected" in what for what in found):
        pytest.skip(f"counts are kept for nvcc {expected.release}")
    assert all(any(what in line for line in lines) for what in found), lines
    assert bool(lines) == bool(found)
