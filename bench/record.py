"""What the programs keep: CSV, JSON and figures, written whole, with the commit they measured.

Nothing here imports torch or fusedstep: gpu_check records before the extension is built.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
Row = Mapping[str, object]  # one line of a CSV file: column names and values


def output(*command: str) -> str:
    """What a command prints; "" where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


def commit() -> str:
    """The commit that is measured, with "+" where files were changed since.

    In a tree without history, the environment variable FUSEDSTEP_COMMIT.
    """
    if (ROOT / ".git").exists():
        head = output("git", "rev-parse", "--short=12", "HEAD")
        changed = output(
            "git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"
        )
        if head:
            return head + ("+" if changed else "")
    return os.environ.get("FUSEDSTEP_COMMIT", "unknown")


def driver() -> str:
    """The version of the GPU driver; "" without one."""
    query = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return query.split("\n")[0]


def check_columns(columns: list[str], path: Path) -> None:
    """ValueError if the file exists and has other columns."""
    if path.exists():
        with path.open(newline="") as file:
            found = next(csv.reader(file), [])
        if found != columns:
            raise ValueError(f"{path.name}: columns must be {columns}, got {found}")


def append_csv(rows: Sequence[Row], path: Path) -> None:
    """Append lines, with the heading in a new file; ValueError if the file has other columns."""
    columns = list(rows[0])
    check_columns(columns, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file next to `path`, then rename it to `path` in one step.

    A reader sees the old content or the new, never a part of it, even after a kill, a full disk or
    a power cut: the new content is on the disk before the name is. A kill can leave
    `<name>.partial`, which the next write overwrites. Raises OSError where the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(content: object, path: Path) -> None:
    """One JSON document; ValueError for a number that is not finite, which JSON cannot hold."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def write_png(figure: Figure, path: Path) -> None:
    """A matplotlib figure as a PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, lambda file: file.write(png.getvalue()))


def text_table(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of cells with aligned columns; `right`: the columns that are aligned to the right."""
    columns = range(len(lines[0]))
    widths = [max(len(line[at]) for line in lines) for at in columns]
    return "\n".join(
        "  ".join(
            f"{line[at]:{'>' if at in right else '<'}{widths[at]}}" for at in columns
        ).rstrip()
        for line in lines
    )
