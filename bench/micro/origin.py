"""Which commit is measured, under which driver; without torch and before anything is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def output(*command: str) -> str:
    """What a command prints; "" where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


def commit() -> str:
    """The commit that is measured, with "+" where files were changed since; in a tree without
    history the variable FUSEDSTEP_COMMIT says it."""
    if (ROOT / ".git").exists():
        head = output("git", "rev-parse", "--short=12", "HEAD")
        changed = output(
            "git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"
        )
        if head:
            return head + ("+" if changed else "")
    return os.environ.get("FUSEDSTEP_COMMIT", "unknown")


def driver() -> str:
    """The version of the GPU driver; "" without one."""
    query = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return query.split("\n")[0]
