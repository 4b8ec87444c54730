"""The JSON of a study: settings, conditions, results; written whole or not at all."""

import json
import os
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from lm.files import write_whole
from lm.report import machine

from bench.record import commit

from .settings import GPTSettings, Settings


def conditions() -> dict:
    """What the times were taken on, and how busy it was then (the last minute's load)."""
    return {
        **machine("cpu"),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
    }


def write(found: dict, settings: Settings | GPTSettings, where: dict, path: Path) -> None:
    """`where`: what `conditions` gave before anything was timed."""
    flat = {name: _plain(value) for name, value in asdict(settings).items()}
    content = {"results": found, "settings": flat, "machine": where}
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.encode()))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
