"""Fixtures of the study of the last layer: its program, settings for seconds, and a text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import bench_programs


@pytest.fixture(scope="module")
def program():
    with bench_programs.program("lm_head") as module:
        yield module


@pytest.fixture(scope="module")
def settings(program):
    return replace(
        program.Settings(),
        vocabulary=50,
        context=8,
        width=10,
        steps=20,
        batch=4,
        held_out=12,
        chunk=5,
        newton_tokens=32,
        newton_seconds=60.0,
        newton_iterations=4,
    )


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Made-up sentences; cache and working folder are the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return bench_programs.write_text(tmp_path)
