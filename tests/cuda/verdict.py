"""What the compiler made of one kernel, and what is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.cuda.nvcc import Resources
from tests.cuda.sass import Code, Loop, widths

READABLE = {
    "(Norm)0": "2",
    "(Norm)1": "1",
    "(Norm)2": "inf",
    "(Along)0": "rows",
    "(Along)1": "columns",
    "double": "float64",
    "float": "float32",
    "BFloat16": "bfloat16",
    "Half": "float16",
    "true": "uniform",
    "false": "mixed",
}


@dataclass(frozen=True)
class Packs:
    """How a step kernel takes an array: kPack of kernels/common/vector.cuh, by its accesses."""

    elements: int  # a thread takes them at once, or one by one where the array is not aligned
    narrowest: int  # bytes of the smallest element that the kernel knows
    wide: int  # accesses of 16 bytes that an array needs, over all element sizes


PACKS = {
    "float32, uniform": Packs(4, 4, 1),
    "float64, uniform": Packs(2, 8, 1),
    "float32, mixed": Packs(8, 1, 3),  # float32 is two accesses, 16 bits are one, 8 bits are half
    "float64, mixed": Packs(4, 1, 3),  # float64 is two, float32 is one, narrower is less
}

# They read doubles one by one, a warp a run of 256 bytes, and are a small part of a factorisation.
# Those of tiny matrices read each once, and then compute. A few words come from an argument.
SINGLE = ("certify", "sum_strips", "scale_rows", "truncate", "tiny_pinv", "write_words")

# Of the whole kernel, and the instructions in one turn of each main loop: what a change of the code
# costs or saves, each within its margin; a single load is less than 2 % of them. Other releases of
# nvcc write other code.
COUNTS = {"instructions": 0.02, "loop_instructions": 0.02, "loads": 0.0, "stores": 0.0}


@dataclass(frozen=True)
class Kernel:
    """What the compiler made of one kernel."""

    name: str
    resources: Resources
    code: Code
    arch: str = "sm_90"
    inexact: Counter[str] = field(default_factory=Counter)  # instructions of ptx.is_inexact

    @property
    def main_loops(self) -> list[Loop]:
        return [loop for loop in self.code.loops if loop.is_main]

    def wide(self, operation: str) -> int:
        """How many "load"s or "store"s of 16 bytes the main loops have."""
        return sum(loop.widths(operation)[16] for loop in self.main_loops)

    def summary(self) -> dict[str, int]:
        """What tests/cuda/expected.py keeps."""
        return {
            "registers": self.resources.registers,
            "shared": self.resources.shared,
            "main_loops": len(self.main_loops),
            "wide_loads": self.wide("load"),
            "wide_stores": self.wide("store"),
            "instructions": self.code.instructions,
            "loop_instructions": sum(loop.instructions for loop in self.main_loops),
            "loads": widths(self.code.accesses, "load").total(),
            "stores": widths(self.code.accesses, "store").total(),
        }


def readable(signature: str) -> str:
    """`step<adam, float32, uniform>` from a demangled signature."""
    name = re.sub(
        r"^void |fusedstep::(cuda::)?|\(anonymous namespace\)::|::Rule|\(int\)", "", signature
    )
    end = name.rfind(">") + 1 or name.index("(")  # a kernel that is no template has no bracket
    name = name[:end].replace("_kernel", "")
    return re.sub(
        r"\((?:Norm|Along)\)\d|\b\w+\b", lambda match: READABLE.get(match[0], match[0]), name
    )


def faults(kernel: Kernel) -> list[str]:
    """What no kernel may do, whatever was expected of it."""
    found = kernel.resources
    forbidden = {
        "stack frame, bytes": found.stack,
        "spill stores, bytes": found.spill_stores,
        "spill loads, bytes": found.spill_loads,
        "accesses to local memory": kernel.code.local_accesses,
        "generic accesses in loops": sum(
            count
            for loop in kernel.code.loops
            for (operation, _), count in loop.accesses.items()
            if operation in ("LD", "ST")
        ),
    }
    forbidden |= {f"{opcode}, unlike a CPU": count for opcode, count in kernel.inexact.items()}
    lines = [f"{what}: must be 0, got {count}" for what, count in forbidden.items() if count]
    loads = any(loop.accesses for loop in kernel.code.loops)
    if loads and not kernel.main_loops and kernel.name.split("<")[0] not in SINGLE:
        lines.append("loops with accesses of 16 bytes: must be there, got none")
    for operation in ("load", "store"):
        lines += [line for loop in kernel.main_loops for line in narrow(kernel, loop, operation)]
    return [f"{kernel.name} on {kernel.arch}: {line}" for line in lines]


def narrow(kernel: Kernel, loop: Loop, operation: str) -> list[str]:
    """Which accesses of 16 bytes this main loop of a norm or a step lacks.

    The norm's has packs alone. A step's takes an array also element by element, for a tensor's end
    and where it is not aligned: accesses of the narrowest elements tell how many arrays there are.
    """
    counts = loop.widths(operation)
    if kernel.name.startswith("norm<") and min(counts, default=16) < 16:
        return [f"narrowest {operation} in a main loop: must be 16 bytes, got {min(counts)}"]
    packs = next((p for ending, p in PACKS.items() if kernel.name.endswith(f"{ending}>")), None)
    if packs is None:
        return []
    arrays = counts[packs.narrowest] / packs.elements
    if counts[16] >= arrays * packs.wide:
        return []
    must = f"{operation}s of 16 bytes: must be {packs.wide} for each array of a main loop"
    return [f"{must}, got {counts[16]} for {arrays:g}"]


def worse(kernel: Kernel, expected: dict[str, int] | None) -> list[str]:
    """Where a kernel needs more or moves less at once than expected."""
    who = f"{kernel.name} on {kernel.arch}"
    if expected is None:
        return [f"{who}: was not expected: run with --update"]
    lines = []
    for key, bound in expected.items():
        if key in COUNTS:
            continue
        got = kernel.summary()[key]
        more_is_worse = key in ("registers", "shared")
        if got > bound if more_is_worse else got < bound:
            limit = "at most" if more_is_worse else "at least"
            lines.append(f"{who}: {key}: expected {limit} {bound}, got {got}")
    return lines


def counted(kernel: Kernel, expected: dict[str, int]) -> list[str]:
    """Where a kernel's counts left what is kept, in either direction, by more than the margin."""
    got = kernel.summary()
    return [
        f"{kernel.name} on {kernel.arch}: {key}: expected {expected[key]} within {margin:.0%}, "
        f"got {got[key]}: run with --update where the change means it"
        for key, margin in COUNTS.items()
        if key in expected and abs(got[key] - expected[key]) > margin * expected[key]
    ]


def repeated(kernels: Iterable[Kernel]) -> list[str]:
    """Which kernels more than one source compiles: each of them takes its time at every build."""
    counts = Counter((kernel.name, kernel.arch) for kernel in kernels)
    return [
        f"{name} on {arch}: must be compiled by one source, got {count}"
        for (name, arch), count in counts.items()
        if count > 1
    ]
