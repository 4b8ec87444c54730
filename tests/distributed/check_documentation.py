"""docs/distributed.md: its blocks print on each of four ranks what they print there."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import Ranks, check
from tests.support.documented import check_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
OTHERS = "## With a trainer\n"  # the blocks of other libraries: tests/trainers/test_page.py


@check(4)
def blocks_of_the_page(ranks: Ranks) -> None:
    check_page(PAGE, least=12, before=OTHERS)
