"""docs/distributed.md, "With a trainer": its blocks print what they print there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.documented import check_page

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
for library in ("accelerate", "lightning", "transformers", "torchtitan"):
    pytest.importorskip(library, reason=f"needs the trainers extra: {library}")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "distributed.md"


@pytest.mark.filterwarnings("ignore")  # of libraries about loaders and settings of these examples
def test_its_examples() -> None:
    check_page(PAGE, least=4, after="## With a trainer\n")
