"""Compiles C++ sources to a shared library, several at a time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def shared_library(
    command: Sequence[str | Path],
    sources: Sequence[Path],
    library: Path,
    links: Sequence[str | Path] = (),
) -> None:
    """`command` with its flags compiles each source; objects and `links` make the library."""

    def compiled(source: Path) -> Path:
        result = library.parent / f"{library.stem}_{source.parent.name}_{source.stem}.o"
        subprocess.run([*command, "-x", "c++", "-c", source, "-o", result], check=True)
        return result

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*command, "-shared", *objects, "-o", library, *links], check=True)
