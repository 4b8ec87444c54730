"""Compiles C++ sources, several at a time, and links them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def link(
    command: Sequence[str | Path],
    sources: Sequence[Path],
    result: Path,
    links: Sequence[str | Path] = (),
) -> None:
    """`command` with its flags compiles each source; objects and `links` make the result."""

    def compiled(source: Path) -> Path:
        made = result.parent / f"{result.stem}_{source.parent.name}_{source.stem}.o"
        subprocess.run([*command, "-x", "c++", "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*command, *objects, "-o", result, *links], check=True)
