"""Every page: its Python blocks run, its links lead to files, its commands exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import fusedstep
from tests.support.documented import check_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("bench/**/*.md"),
        *sorted(ROOT.glob("docs/**/*.md")),
    )
}
ELSEWHERE = {  # where the blocks of a page run, if not here
    "docs/adding_a_rule.md": "tests/build/test_walkthrough.py",  # they are files
    "docs/distributed.md": "tests/distributed/check_documentation.py",  # on four ranks
}
NEEDS = {"docs/batch_size_and_rate.md": "scipy"}

MODULES = ("linalg", "lm_head", "nqm", "dynamics", "schedules")  # those with functions of their own

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
TARGET = re.compile(r"^([\w-]+):", re.MULTILINE)


@pytest.mark.parametrize("name", sorted(PAGES.keys() - ELSEWHERE.keys()))
def test_blocks(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}")
    check_page(PAGES[name])


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links(name: str) -> None:
    page = PAGES[name]
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("name", sorted(PAGES))
def test_commands(name: str) -> None:
    text = " ".join(PAGES[name].read_text().split())  # a command may be broken between lines
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?:`|``` |^)make ([a-z-]+)\b", text)) <= targets
    modules = set(re.findall(r"python3? -m ((?:bench|tests|fusedstep)[\w.]*\w)", text))
    assert all(find_spec(module) for module in modules)


def test_reference_has_every_name() -> None:
    shown = {
        name
        for page in PAGES.values()
        for name in re.findall(r"^::: fusedstep\.([\w.]+)$", page.read_text(), re.MULTILINE)
    }
    public = set(fusedstep.__all__) - {*MODULES, "build"}
    public |= {f"{m}.{name}" for m in MODULES for name in getattr(fusedstep, m).__all__}
    public -= {f"linalg.{name}" for name in fusedstep.__all__}  # shown without it
    shown = {name.replace("simulate.simulate", "simulate") for name in shown}  # also a module
    assert shown == public | {"optim.Options", "optim.optimizer.FusedOptimizer"}
