"""Writes the C++ header with the facts of a build, which both modules return to Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


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
