"""Disassembles machine code and finds in every kernel its loops and how wide they access memory."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# LDG/STG know their data to be in global memory; LD/ST ask at run time; LDL/STL are local memory.
ACCESS = re.compile(r"(LDG|STG|LD|ST|LDL|STL)(\..*)?$")
INSTRUCTION_BYTES = 16
Accesses = Counter[tuple[str, int]]  # of (operation, bytes)


def widths(accesses: Accesses, operation: str) -> Counter[int]:
    """How often "load" or "store" of global memory occurs with each width in bytes."""
    names = ("LDG", "LD") if operation == "load" else ("STG", "ST")
    counts: Counter[int] = Counter()
    for (name, width), count in accesses.items():
        if name in names:
            counts[width] += count
    return counts


@dataclass(frozen=True)
class Loop:
    """One turn of an innermost loop: its accesses to memory, and its instructions."""

    accesses: Accesses
    instructions: int = 0

    def widths(self, operation: str) -> Counter[int]:
        """How often "load" or "store" of global memory occurs with each width in bytes."""
        return widths(self.accesses, operation)

    @property
    def is_main(self) -> bool:
        """Whether it moves packs of 16 bytes; heads, tails and unaligned data go one by one."""
        return any(width == 16 for _, width in self.accesses)


@dataclass(frozen=True)
class Code:
    """A kernel's innermost loops, and all its accesses to memory and instructions."""

    loops: list[Loop]
    accesses: Accesses = field(default_factory=Counter)
    instructions: int = 0

    @property
    def local_accesses(self) -> int:
        """How many accesses to local memory there are."""
        return sum(count for (name, _), count in self.accesses.items() if name in ("LDL", "STL"))


def find_disassembler(toolkit: Path | None) -> Path | None:
    """nvdisasm of the toolkit, of PATH, of Triton's package or of nvidia-cuda-nvdisasm; or None."""
    places = [toolkit / "bin"] if toolkit else []
    for package, folder in (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin")):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            places += [Path(place) / folder for place in spec.submodule_search_locations]
    candidates = [place / "nvdisasm" for place in places]
    on_path = shutil.which("nvdisasm")
    candidates.insert(1, Path(on_path)) if on_path else None
    return next((path for path in candidates if path.exists()), None)


def disassemble(nvdisasm: Path, cubin: Path) -> dict[str, Code]:
    """The code of each mangled kernel in `cubin`."""
    command = [str(nvdisasm), "-json", str(cubin)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        function["function-name"]: read_code(function["sass-instructions"])
        for function in json.loads(output)[1]
        if not function["function-name"].startswith("$")  # a subroutine within a kernel
    }


def access_of(opcode: str) -> tuple[str, int] | None:
    """(operation, bytes) of a load or store such as LDG.E.128, else None."""
    match = ACCESS.match(opcode)
    if match is None:
        return None
    modifiers = (match[2] or "").split(".")
    bits = next((int(m.lstrip("US")) for m in modifiers if m.lstrip("US").isdigit()), 32)
    return match[1], bits // 8


def read_code(instructions: list[dict]) -> Code:
    """Loops are the stretches that a branch backwards closes; outer ones are dropped.

    Where none of them is a main loop, what lies outside of them may be one turn of a main loop: a
    thread takes all that it takes at once. Instructions that do nothing (NOP) are not counted.
    """
    works = [instruction["opcode"] != "NOP" for instruction in instructions]
    accesses = [access_of(instruction["opcode"]) for instruction in instructions]
    spans = []
    for at, instruction in enumerate(instructions):
        target = re.search(r"0x([0-9a-f]+)$", instruction.get("operands", ""))
        if instruction["opcode"].startswith("BRA") and target:
            begin = int(target[1], 16) // INSTRUCTION_BYTES
            if begin < at:  # a branch to itself is the padding after the end
                spans.append((begin, at + 1))
    inner = [
        (begin, end)
        for begin, end in spans
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans)
    ]
    loops = [
        Loop(Counter(filter(None, accesses[begin:end])), sum(works[begin:end]))
        for begin, end in inner
    ]
    loops = [loop for loop in loops if loop.accesses]
    outside = [at for at in range(len(works)) if not any(b <= at < e for b, e in spans)]
    once = Loop(
        Counter(filter(None, (accesses[at] for at in outside))), sum(works[at] for at in outside)
    )
    if once.is_main and not any(loop.is_main for loop in loops):
        loops.append(once)
    return Code(loops, Counter(filter(None, accesses)), sum(works))
