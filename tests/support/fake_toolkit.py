"""Folders that look like an installed CUDA toolkit to the build."""

from __future__ import annotations

from pathlib import Path


def script(path: Path, text: str) -> Path:
    """An executable shell script at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def headers(folder: Path, *names: str, version: str = "11 7 1") -> Path:
    """A folder with these headers and, next to cusolverDn.h, the one that has the version."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    if "cusolverDn.h" in names:
        numbers = zip(("MAJOR", "MINOR", "PATCH", "BUILD"), [*version.split(), "2"], strict=True)
        lines = (f"  #define CUSOLVER_VER_{part} {number}\n" for part, number in numbers)
        (folder / "cusolver_common.h").write_text("".join(lines))
    return folder
