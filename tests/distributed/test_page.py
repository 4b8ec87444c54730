"""docs/distributed.md names tests that exist."""

from __future__ import annotations

import re

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

from tests.distributed.check_documentation import OTHERS, PAGE
from tests.distributed.every_check import CHECKS


def test_its_tests() -> None:
    text = PAGE.read_text()
    proofs = text[text.index("## What works\n") : text.index(OTHERS)]
    named = set(re.findall(r"`([a-z_]+\.[a-z_0-9]+)`", proofs))
    checks = (check for checks in CHECKS.values() for check in checks.values())
    known = {f"{check.__module__.rpartition('check_')[2]}.{check.__name__}" for check in checks}
    assert len(named) > 15
    assert named <= known, f"no such tests: {sorted(named - known)}"
