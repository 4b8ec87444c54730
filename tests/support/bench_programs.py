"""The programs of bench/ as modules, and a text for those that learn one."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@contextmanager
def program(name: str) -> Iterator[ModuleType]:
    """bench/<name>.py, found as Python finds it when it is run as a script."""
    for package in ("matplotlib", "rich", "tokenizers"):
        pytest.importorskip(package, reason=f"needs the bench extra: {package}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module(name)


def write_text(folder: Path) -> Path:
    """A file of made-up sentences, long enough for a few epochs of the tiny recipe."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=4)) for _ in range(50)]
    path = folder / "text.txt"
    path.write_text(" ".join(chance.choices(words, k=4000)))
    return path
