"""The suite's GPU tests, a process for each file: which files, and what pytest says at the end."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from bench.gpu.rows import Row

# A GPU test takes the fixture `device` or bears the mark; a word in the text selects a few more.
WORDS = re.compile(r"\bdevice: |\(device\)|, device\b|pytest\.mark\.gpu\b|\bgpu\b")
NOTHING_COLLECTED = 5  # exit status
BRIEF = (
    "tests/linalg/test_rank.py",
    "tests/lm_head/test_least_squares_refused.py",
)  # of a quick rehearsal
SECONDS_A_TEST = 60


def files(root: Path) -> list[Path]:
    """The files that may have GPU tests; those of linear algebra, which take longest, first."""
    every = sorted((root / "tests").rglob("test_*.py"))
    some = [path for path in every if WORDS.search(path.read_text())]
    some = [path for path in some if path.parent.name not in ("bench", "cuda", "trainers")]
    return sorted(some, key=lambda path: "linalg" not in path.parts)


def arguments(path: Path) -> list[str]:
    """Of pytest: GPU tests alone, a line for each as it runs, no test for ever."""
    limit = ["--timeout", f"{SECONDS_A_TEST}", "--timeout-method", "thread"]
    limit = limit if importlib.util.find_spec("pytest_timeout") else []
    return [str(path), "-m", "gpu", "-v", "-rs", "-p", "no:cacheprovider", "--tb=short", *limit]


def judge(name: str, status: int, log: str) -> list[Row]:
    """One row, with the names of what failed; none for a file without GPU tests."""
    if status == NOTHING_COLLECTED:
        lacking = re.search(r"could not import .*$", log, re.MULTILINE)
        return [Row(name, f"left out: {lacking[0]}")] if lacking else []
    told = re.findall(r"^\S+?::(.+?) (PASSED|FAILED|ERROR)\b", log, re.MULTILINE)  # as they ran
    failed = [test for test, verdict in told if verdict != "PASSED"]
    ends = re.findall(r"^=* ?((?:\d+ \w+,? ?)+)in [\d.]+s", log, re.MULTILINE)
    counts = f"{len(told) - len(failed)} passed, {len(failed)} failed, exit status {status}"
    counts = ends[-1].strip() if ends else counts
    result = f"{counts}: {', '.join(failed[:3])}" if failed else counts
    passed = status == 0 and " passed" in counts
    return [Row(name, result, "none fails", passed, {"failed": failed})]
