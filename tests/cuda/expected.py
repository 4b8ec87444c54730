"""What is kept of the compiled kernels: registers.txt for all architectures, expected.json for one.

registers.txt has a line for each kernel and a column for each architecture: registers a thread, or
a dash where the kernel was not compiled for it when the file was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tests.cuda.verdict import Kernel

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ARCH = "sm_90"  # whose loops and accesses expected.json keeps, and which CI compiles for

FOLDER = Path(__file__).parent
Registers = dict[str, dict[str, int]]  # by kernel and architecture


def read_registers(text: str) -> Registers:
    """From the text of registers.txt."""
    heading, *rows = text.splitlines()
    archs = heading.split()
    table = {}
    for row in rows:
        name, *cells = row.rsplit(maxsplit=len(archs))
        table[name] = {a: int(c) for a, c in zip(archs, cells, strict=True) if c != "-"}
    return table


def registers_text(table: Registers) -> str:
    """The text of registers.txt."""
    width = max(map(len, table))
    lines = [f"{'':{width}}" + "".join(f"{arch:>8}" for arch in ARCHS)]
    for name, counts in sorted(table.items()):
        lines.append(f"{name:{width}}" + "".join(f"{counts.get(a, '-'):>8}" for a in ARCHS))
    return "\n".join(lines) + "\n"


class Expected:
    """Both files in `folder`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.json, self.txt = folder / "expected.json", folder / "registers.txt"
        kept = json.loads(self.json.read_text())
        self.release: str = kept["nvcc"]
        self.code: dict[str, dict[str, int]] = kept["kernels"]
        self.registers = read_registers(self.txt.read_text())

    def of(self, name: str, arch: str) -> dict[str, int] | None:
        """What Kernel.summary() was; of other architectures than ARCH the registers alone."""
        registers = self.registers.get(name, {}).get(arch)
        code = self.code.get(name) if arch == ARCH else {}
        return None if registers is None or code is None else {"registers": registers, **code}

    def gone(self, names: Iterable[str]) -> list[str]:
        """Kernels that are kept though they are none of `names`."""
        return sorted((self.code.keys() | self.registers.keys()) - set(names))

    def update(self, release: str, kernels: Iterable[Kernel]) -> None:
        """Writes what was found; columns that were not compiled stay as they are."""
        registers: Registers = {}
        rows = []
        for kernel in kernels:
            kept = registers.setdefault(kernel.name, dict(self.registers.get(kernel.name, {})))
            summary = kernel.summary()
            kept[kernel.arch] = summary.pop("registers")
            if kernel.arch == ARCH:
                rows.append(f'  "{kernel.name}": {json.dumps(summary)}')
        self.txt.write_text(registers_text(registers))
        if rows:
            body = ",\n".join(sorted(rows))
            self.json.write_text(f'{{\n "nvcc": "{release}",\n "kernels": {{\n{body}\n }}\n}}\n')
        self.__init__(self.json.parent)
