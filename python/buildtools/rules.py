"""Makes the source files of kernels/*/*.in: a file for each rule, or for each kind of matrix.

`python rules.py cpu|cuda FOLDER` prints them, for CMake.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_sources(device: str, folder: Path, root: Path = ROOT) -> list[Path]:
    """Fills in the templates of `device` ("cpu" or "cuda") with all that their @names@ stand for.

    A file that is up to date is not written, because a newer time would recompile it. Files of
    rules that no longer exist are removed.
    """
    suffix = {"cpu": ".cpp", "cuda": ".cu"}[device]
    rules = sorted(path.stem for path in (root / "kernels" / "optim" / "rules").glob("*.h"))
    choices = {"stem": rules, "storage": ["float", "double"], "side": ["8", "16", "32"]}
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for template in sorted((root / "kernels").glob(f"*/*{suffix}.in")):
        text = template.read_text()
        names = [name for name in choices if f"@{name}@" in text]
        for values in product(*(choices[name] for name in names)):
            filled = text
            for name, value in zip(names, values, strict=True):
                filled = filled.replace(f"@{name}@", value)
            stem = template.name.removesuffix(f"{suffix}.in")
            source = folder / f"{'_'.join([stem, *values])}{suffix}"
            if not source.exists() or source.read_text() != filled:
                source.write_text(filled)
            sources.append(source)
    for stale in set(folder.glob(f"*{suffix}")) - set(sources):
        stale.unlink()
    return sources


if __name__ == "__main__":
    print(*write_sources(sys.argv[1], Path(sys.argv[2])), sep=";")
