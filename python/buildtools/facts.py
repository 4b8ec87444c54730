"""The facts of a build: its sources' fingerprint, and the C++ header that both modules return."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def fingerprint(root: Path) -> str:
    """Tells builds of different C++ sources apart: the two modules share structs."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ("csrc", "kernels") for path in (root / room).rglob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def header_text(facts: Mapping[str, str]) -> str:
    """The header: pairs of name and value, in the order given."""
    rows = "".join(f'    {{"{name}", R"({value})"}},\n' for name, value in facts.items())
    return (
        "// The facts of this build, written by setup.py.\n#pragma once\n\n"
        f"inline constexpr const char* kBuildFacts[][2] = {{\n{rows}}};\n"
    )


def write_header(path: Path, facts: Mapping[str, str]) -> None:
    """Writes the header where its text changed; a newer file time alone would mean recompiling."""
    text = header_text(facts)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
