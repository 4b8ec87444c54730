"""The text to train on: the Python standard library's own source, or the user's file or folder."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

VALIDATION_SHARE = 0.1
# Other people's packages; tests, full of literal data; and pydoc's topics, one file of generated
# English as long as a whole tenth of the rest, which would make up most of one part of the split.
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """One file: its path below the folder it was found in, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Text split by file, and the names of files that were left out as they are no UTF-8 text."""

    training: list[Document]
    validation: list[Document]
    left_out: list[str]


def read_documents(data: Path | None) -> Documents:
    """Read `data` (a file, or all of a folder but hidden files), or the library where it is None.

    Raises InputError where it is missing, unreadable, empty or not text.
    """
    if data is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in _files_below(root) if _is_library(path.relative_to(root))]
    elif data.is_dir():
        root, paths = data, list(_files_below(data))
    elif data.is_file():
        root, paths = data.parent, [data]
    elif data.exists():
        raise InputError(f"--data must be a file or a folder, got {data}")
    else:
        raise InputError(f"--data must exist, got {data}")

    documents, left_out = [], []
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            if path == data:
                raise InputError(f"--data must be UTF-8 text, got {data}: {error}") from None
            left_out.append(name)
        except OSError as error:
            raise InputError(f"--data must be readable, got {path}: {error.strerror}") from None
        else:
            if text.strip():
                documents.append(Document(name, text))
    if not documents:
        raise InputError(f"--data must hold some UTF-8 text, got none in {data or root}")
    return Documents(*split_by_file(documents), left_out)


def split_by_file(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, about 9 to 1 by characters; never the same file in both.

    Files take their turn in the order of their names' hashes, so the split is the same on every
    machine and says nothing about what a file is; validation takes those that still fit its share,
    or else the shortest. A single file is cut: its last tenth is for validation.
    """
    if len(documents) == 1:
        (whole,) = documents
        cut = round(len(whole.text) * (1 - VALIDATION_SHARE))
        return [Document(whole.name, whole.text[:cut])], [Document(whole.name, whole.text[cut:])]

    room = VALIDATION_SHARE * sum(len(document.text) for document in documents)
    training, validation = [], []
    for document in sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest()):
        fits = len(document.text) <= room
        room -= len(document.text) if fits else 0
        (validation if fits else training).append(document)
    if not validation:
        shortest = min(training, key=lambda document: len(document.text))
        training.remove(shortest)
        validation.append(shortest)
    return training, validation


def _files_below(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"--data must be readable, got {error.filename}: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _is_library(path: Path) -> bool:
    return path.suffix == ".py" and not NOT_THE_LIBRARY.intersection(path.parts)
