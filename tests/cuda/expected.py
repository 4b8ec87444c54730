"""What is kept of the compiled kernels: registers.txt for all architectures, sm_90.txt for one.

Both have a line for each kernel. registers.txt has a column for each architecture: registers a
thread, or a dash where the kernel was not compiled for it when the file was written. sm_90.txt has
the other numbers of Kernel.summary(), and begins with the release of nvcc that they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.cuda.verdict import Kernel

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ARCH = "sm_90"  # whose code is kept, and which CI compiles for

FOLDER = Path(__file__).parent
Numbers = dict[str, dict[str, int]]  # by kernel and column


def read_table(text: str) -> tuple[str, Numbers]:
    """The corner before the first heading, and the numbers, without those that are dashes."""
    heading, *rows = text.splitlines()
    corner, _, headings = heading.partition("  ")
    columns = headings.split()
    table = {}
    for row in rows:
        name, *cells = row.rsplit(maxsplit=len(columns))
        table[name] = {c: int(n) for c, n in zip(columns, cells, strict=True) if n != "-"}
    return corner, table


def table_text(corner: str, columns: Sequence[str], table: Numbers) -> str:
    """The text of a file; columns are as wide as their headings."""
    width = max(map(len, table))
    cells = {column: f"{{:>{max(8, len(column) + 2)}}}" for column in columns}
    lines = [f"{corner:{width}}" + "".join(cells[c].format(c) for c in columns)]
    for name, numbers in sorted(table.items()):
        line = "".join(cells[c].format(numbers.get(c, "-")) for c in columns)
        lines.append(f"{name:{width}}{line}")
    return "\n".join(lines) + "\n"


class Expected:
    """Both files in `folder`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        _, self.registers = read_table((folder / "registers.txt").read_text())
        corner, self.code = read_table((folder / f"{ARCH}.txt").read_text())
        self.release = corner.removeprefix("nvcc ")

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
        registers: Numbers = {}
        code: Numbers = {}
        for kernel in kernels:
            kept = registers.setdefault(kernel.name, dict(self.registers.get(kernel.name, {})))
            summary = kernel.summary()
            kept[kernel.arch] = summary.pop("registers")
            if kernel.arch == ARCH:
                code[kernel.name] = summary
        (self.folder / "registers.txt").write_text(table_text("", ARCHS, registers))
        if code:
            columns = list(next(iter(code.values())))
            text = table_text(f"nvcc {release}", columns, code)
            (self.folder / f"{ARCH}.txt").write_text(text)
        self.__init__(self.folder)
