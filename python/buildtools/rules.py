"""Makes the source files that compile each rule of kernels/optim/rules, which is one header."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def write_sources(device: str, folder: Path, root: Path = ROOT) -> list[Path]:
    """Fills in the template of `device` ("cpu" or "cuda") for each rule; CMakeLists.txt does too.

    A file that is up to date is not written, because a newer time would recompile it. Files of
    rules that no longer exist are removed.
    """
    suffix = {"cpu": ".cpp", "cuda": ".cu"}[device]
    template = root / "kernels" / "optim" / f"rule{suffix}.in"
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for rule in sorted((root / "kernels" / "optim" / "rules").glob("*.h")):
        source = folder / f"{rule.stem}{suffix}"
        text = template.read_text().replace("@stem@", rule.stem)
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        sources.append(source)
    for stale in set(folder.glob(f"*{suffix}")) - set(sources):
        stale.unlink()
    return sources
