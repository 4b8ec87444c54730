"""Finds the headers of cuBLAS and cuSOLVER, which a toolkit may lack and torch's wheels have.

No library is linked: csrc/cuda/solver_library.cpp opens them next to those that torch has loaded.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

HEADERS = ("cublas_v2.h", "cusolverDn.h")
MINIMUM_CUSOLVER = (11, 7, 1)  # of CUDA 12.6.2: the first with all that is called


def wheel_folders(cuda: str) -> list[Path]:
    """Where the wheels that torch depends on have headers for this version of CUDA: in one folder
    since 13, in one for each library before."""
    folders = []
    for name in (f"cu{cuda.split('.')[0]}", "cublas", "cusolver"):
        try:
            spec = importlib.util.find_spec(f"nvidia.{name}")
        except ModuleNotFoundError:  # there is not even a folder nvidia
            continue
        places = spec.submodule_search_locations if spec else None
        folders += [Path(place) / "include" for place in places or ()]
    return folders


def header_folders(own: Path, others: Iterable[Path]) -> tuple[Path, ...]:
    """The folders that must follow `own`, the toolkit's, for all headers to be found: none where it
    has them. LookupError, one sentence, where one is nowhere or too old."""
    found = []
    for header in HEADERS:
        places = [place for place in (own, *others) if (place / header).exists()]
        if not places:
            wheels = "the wheels nvidia-cublas and nvidia-cusolver"
            raise LookupError(f"{header} is neither in {own} nor in {wheels}")
        found.append(places[0])
    common = (found[-1] / "cusolver_common.h").read_text()
    parts = dict(re.findall(r"#define CUSOLVER_VER_(\w+) (\d+)", common))
    version = tuple(int(parts[part]) for part in ("MAJOR", "MINOR", "PATCH"))
    if version < MINIMUM_CUSOLVER:
        got, least = (".".join(map(str, numbers)) for numbers in (version, MINIMUM_CUSOLVER))
        raise LookupError(f"cuSOLVER {got} in {found[-1]} is older than {least}")
    return tuple(dict.fromkeys(place for place in found if place != own))
