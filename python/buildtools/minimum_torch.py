"""The oldest supported torch, from pyproject.toml's dependencies, and its target version."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def declared(pyproject: str) -> tuple[int, int]:
    """Major and minor from the line `dependencies = ["torch>=2.11", ...]` of that text."""
    found = re.search(r'^dependencies = \[.*"torch>=(\d+)\.(\d+)"', pyproject, re.MULTILINE)
    if found is None:
        raise RuntimeError("pyproject.toml: dependencies must name torch>=<major>.<minor>")
    return int(found[1]), int(found[2])


MINIMUM_TORCH = declared((ROOT / "pyproject.toml").read_text())

# What torch's stable headers then offer: torch/headeronly/version.h's TORCH_VERSION_X_Y_0.
TORCH_TARGET_VERSION = "0x{:02x}{:02x}000000000000".format(*MINIMUM_TORCH)
