"""What a section of the study is: a computation, its claims and its figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from bench.studies.claims import Claim
from bench.studies.stages import Stages


@dataclass(frozen=True)
class Section:
    """A section of the article.

    `run` computes with `settings`, or with `quick` for the tests; each claim and the figure are
    functions of what it found.
    """

    name: str  # of the figure's file
    question: str
    settings: Any
    quick: Any
    run: Callable[[Any, Stages], Any]
    claims: tuple[Callable[[Any], Claim], ...]
    draw: Callable[[Any], Figure]
