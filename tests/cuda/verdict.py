"""What the compiler made of one kernel, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.cuda.nvcc import Resources
from tests.cuda.sass import Code, Loop

READABLE = {
    "(Norm)0": "2",
    "(Norm)1": "1",
    "(Norm)2": "inf",
    "double": "float64",
    "float": "float32",
    "BFloat16": "bfloat16",
    "Half": "float16",
}
# A pack of float64 has two elements, 16 bytes; two gradients of a narrower type are fewer bytes.
NARROW_LOADS = {"float64, float32": 8, "float64, bfloat16": 4, "float64, float16": 4}
# An id and the number of its row are 8 bytes each.
NARROW_LOADS |= {f"sum_pieces<{name}": 8 for name in ("float32", "float64", "bfloat16", "float16")}


@dataclass(frozen=True)
class Kernel:
    """What the compiler made of one kernel."""

    name: str
    resources: Resources
    code: Code

    @property
    def main_loops(self) -> list[Loop]:
        return [loop for loop in self.code.loops if loop.is_main]

    def narrowest(self, operation: str) -> int:
        """Bytes of the narrowest "load" or "store" in the main loops; 16 where there is none."""
        return min((w for loop in self.main_loops for w in loop.widths(operation)), default=16)

    def summary(self) -> dict[str, int]:
        """What expected.json keeps."""
        return {
            "registers": self.resources.registers,
            "shared": self.resources.shared,
            "main_loops": len(self.main_loops),
            "narrowest_load": self.narrowest("load"),
            "narrowest_store": self.narrowest("store"),
        }


def readable(signature: str) -> str:
    """`step<Adam, float32, bfloat16>` from a demangled signature."""
    name = re.sub(r"^void |fusedstep::(cuda::)?|\(anonymous namespace\)::", "", signature)
    name = name[: name.rindex(">") + 1].replace("_kernel", "")
    return re.sub(r"\(Norm\)\d|\b\w+\b", lambda match: READABLE.get(match[0], match[0]), name)


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
    lines = [f"{what}: must be 0, got {count}" for what, count in forbidden.items() if count]
    narrow = next((w for types, w in NARROW_LOADS.items() if f"{types}>" in kernel.name), 16)
    for operation, least in (("load", narrow), ("store", 16)):
        width = kernel.narrowest(operation)
        if width < least:
            lines.append(
                f"narrowest {operation} in a main loop: must be {least} bytes, got {width}"
            )
    return [f"{kernel.name}: {line}" for line in lines]


def worse(kernel: Kernel, expected: dict[str, int] | None) -> list[str]:
    """Where a kernel needs more or moves less at once than expected."""
    if expected is None:
        return [f"{kernel.name}: is not in expected.json: run with --update"]
    lines = []
    for key, got in kernel.summary().items():
        more_is_worse = key in ("registers", "shared")
        if got > expected[key] if more_is_worse else got < expected[key]:
            bound = "at most" if more_is_worse else "at least"
            lines.append(f"{kernel.name}: {key}: expected {bound} {expected[key]}, got {got}")
    return lines
