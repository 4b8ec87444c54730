"""The checkpoint of a comparison, from which a later process continues bit for bit."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.command import InputError
from bench.record import write_whole
from bench.studies.language_model.comparison import Comparison

FORMAT = 1


def save(comparison: Comparison, fingerprint: str, path: Path) -> None:
    """Write both runs to `path`, whole or not at all; `fingerprint` names the text.

    Raises InputError where the disk refuses; what `path` held before is then still there.
    """
    content = {
        "format": FORMAT,
        "settings": {**comparison.recipe.flat(), "text": fingerprint},
        "comparison": comparison.state_dict(),
    }
    try:
        write_whole(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into the second
        raise InputError(f"the checkpoint {path} cannot be written: {error}") from error


def resume(comparison: Comparison, fingerprint: str, path: Path) -> None:
    """Take `comparison` to where the one in `path` was.

    Raises InputError where there is none, where it is damaged, or where it was written with other
    settings or another text.
    """
    content = read(path, "--resume")
    with refuse_foreign(path, "--resume"):
        theirs, ours = content["settings"], {**comparison.recipe.flat(), "text": fingerprint}
        differences = [
            f"{name} {_short(theirs.get(name))} where this run has {_short(ours.get(name))}"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differences:
            raise InputError(f"--resume: {path} was written with {', '.join(differences)}")
        comparison.load_state_dict(content["comparison"])


def read(path: Path, option: str) -> dict[str, Any]:
    """What `save` wrote: `settings` and `comparison`. Raises InputError, with the option's name."""
    with refuse_foreign(path, option):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InputError(f"{option}: {path} must be a file")
        # torch.load ignores the checksums that torch.save writes: a flipped bit would pass.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{option}: {path} is damaged: the checksum of {damaged} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other programs' files
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f"{option}: {path} is not a checkpoint of this program's format {FORMAT}"
            )
    return content


@contextmanager
def refuse_foreign(path: Path, option: str) -> Iterator[None]:
    """Raises InputError where a block fails on what another program, or nobody, left at `path`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{option}: there is no checkpoint {path}") from None
    except InputError:
        raise
    except Exception as error:  # a foreign file can hold anything
        # The first sentence: torch's are followed by paragraphs.
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"{option}: {path} is damaged or not a checkpoint: {type(error).__name__}: {reason}"
        ) from error


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
