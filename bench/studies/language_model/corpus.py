"""Text for a language model: read and split by file, cut into tokens and windows, and sampled.

The text is the Python standard library's own source, or the user's file or folder. A byte-pair
tokenizer is trained on the training files and cached with the tokens it made.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from bench.command import InputError
from bench.record import write_whole

END_OF_TEXT = "<|endoftext|>"  # stands between files, as in GPT-2
CACHE_FORMAT = 2
VALIDATION_SHARE = 0.1
MOST_CHARACTERS = 250_000_000  # they take up to about 3 GB of memory, and minutes
# The tokenizer sees text in parts of so many characters, or twice as many where there is no space:
# its training takes the square of a word's length, and an encoding 170 bytes a character.
PART = 1024
AT_ONCE = 1024  # parts that are encoded
WORD_END = re.compile(r"\S(?=\s)")
# Other people's packages; tests, full of literal data; and pydoc's topics, one generated file as
# long as a tenth of the rest, which would be most of one part of the split.
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """One file: its path below the folder it was found in, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Text split by file, and the names of the files that are left out: they are not UTF-8."""

    training: list[Document]
    validation: list[Document]
    left_out: list[str]


def read_documents(data: Path | None) -> Documents:
    """Read `data` (a file, or all files of a folder but hidden ones), or the library if it is None.

    Raises InputError where it is missing, unreadable, empty, too large or not text.
    """
    if data is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in _files_below(root) if _is_library(path.relative_to(root))]
    elif _is_folder(data):
        root, paths = data, list(_files_below(data))
    else:
        root, paths = data.parent, [data]

    documents, left_out, room = [], [], MOST_CHARACTERS
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            text = _read(path, room + 1)
        except OSError as error:
            raise InputError(f"--data must be readable, got {path}: {error.strerror}") from None
        except ValueError as error:
            if path == data:
                raise InputError(f"--data must be UTF-8 text, got {data}: {error}") from None
            left_out.append(name)
            continue
        room -= len(text)
        if room < 0:
            raise InputError(
                f"--data must hold at most {MOST_CHARACTERS // 10**6} million characters, "
                f"got more in {data or root}"
            )
        if text.strip():
            documents.append(Document(name, text))
    if not documents:
        raise InputError(f"--data must hold some UTF-8 text, got none in {data or root}")
    return Documents(*split_by_file(documents), left_out)


def split_by_file(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, about 9 to 1 by characters.

    Files are taken in the order of their names' hashes, so the split is the same on every machine
    and independent of their content; validation takes those that still fit its share. Where they
    leave half of it empty, as a few long files do, the end of the longest file fills it: only then
    are both parts from one file.
    """
    share = VALIDATION_SHARE * sum(len(document.text) for document in documents)
    room = share
    training: list[Document] = []
    validation: list[Document] = []
    for document in sorted(documents, key=lambda d: hashlib.sha256(os.fsencode(d.name)).digest()):
        fits = len(document.text) <= room
        room -= len(document.text) if fits else 0
        (validation if fits else training).append(document)
    if room > share / 2:
        at = max(range(len(training)), key=lambda i: len(training[i].text))
        name, text = training[at].name, training[at].text
        cut = len(text) - round(room)  # a file that did not fit is longer than the room
        training[at] = Document(name, text[:cut])
        validation.append(Document(name, text[cut:]))
    return training, validation


def _is_folder(data: Path) -> bool:
    """Whether it is a folder or a file; raises InputError where it is neither."""
    try:
        mode = data.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"--data must exist, got {data}") from None
    except OSError as error:
        raise InputError(f"--data must be readable, got {data}: {error.strerror}") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InputError(f"--data must be a file or a folder, got {data}")
    return stat.S_ISDIR(mode)


def _files_below(root: Path) -> Iterator[Path]:
    """Everything in a folder that is not a folder itself; also links to folders, not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"--data must be readable, got {error.filename}: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = (name for name in folders if os.path.islink(os.path.join(folder, name)))
        names = sorted(name for name in (*files, *links) if not name.startswith("."))
        yield from (Path(folder, name) for name in names)


def _read(path: Path, most: int) -> str:
    """Up to `most` characters of a file; ValueError, with the reason, where it is not text."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")  # a pipe would be waited for, a device may not end
    with path.open("rb") as raw, TextIOWrapper(raw, "utf-8-sig", newline="\n") as file:
        try:
            text = file.read(most)
        except UnicodeDecodeError as error:
            at = raw.tell() - len(error.object) + error.start
            byte = error.object[error.start]
            raise ValueError(f"{error.reason} 0x{byte:02x} at position {at}") from None
    if "\0" in text:
        raise ValueError(f"NUL at character {text.index(chr(0))}, as in UTF-16 or binary data")
    return text


def _is_library(path: Path) -> bool:
    return path.suffix == ".py" and not NOT_THE_LIBRARY.intersection(path.parts)


@dataclass(frozen=True)
class Corpus:
    """Training and validation tokens, 1-d int32, and the tokenizer that made them."""

    training: Tensor
    validation: Tensor
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens: a checkpoint remembers it."""
        digest = hashlib.sha256()
        for tokens in (self.training, self.validation):
            digest.update(len(tokens).to_bytes(8, "little") + tokens.numpy().tobytes())
        return digest.hexdigest()


def tokenise(documents: Documents, vocabulary: int, say: Callable[[str], None]) -> Corpus:
    """Tokens of `documents`, from the cache where the same text was seen before.

    `say` prints what is slow or unusual. The cache is a file in `cache_folder()`, named by a hash
    of the text; a damaged one is made again, and one that cannot be written is left out.
    """
    path = cache_folder() / f"corpus-{_key(documents, vocabulary)}.npz"
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"The cached tokens in {path} cannot be read ({error}); making them again.")

    size = sum(len(document.text) for document in documents.training)
    say(f"Training a {vocabulary}-token tokenizer on {size / 1e6:.1f} M characters, only once.")
    start = time.perf_counter()
    corpus = _make(documents, vocabulary)
    say(f"That took {time.perf_counter() - start:.1f} s.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: _save(corpus, file))
    except OSError as error:
        say(f"It cannot be kept for the next time: {path}: {error.strerror}.")
    return corpus


def cache_folder() -> Path:
    """The user's cache folder for this project, as the XDG base directory specification says."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "fusedstep"


def _make(documents: Documents, vocabulary: int) -> Corpus:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: no text is unknown
        show_progress=False,
    )
    texts = (document.text for document in documents.training)
    tokenizer.train_from_iterator((part for text in texts for part in parts(text)), trainer)
    return Corpus(
        _encode(documents.training, tokenizer), _encode(documents.validation, tokenizer), tokenizer
    )


def parts(text: str) -> Iterator[str]:
    """`text` in parts of PART characters or more, each up to the next space, which starts a word.

    Their tokens are those of the whole. Where there is no space in as many characters again, the
    part ends there, and a word can be cut.
    """
    start = 0
    while start < len(text):
        limit = start + 2 * PART
        found = WORD_END.search(text, start + PART - 1, limit + 1)
        end = found.end() if found else limit
        yield text[start:end]
        start = end


def _encode(documents: list[Document], tokenizer: Tokenizer) -> Tensor:
    texts = (part for document in documents for part in (*parts(document.text), END_OF_TEXT))
    tokens = []
    while some := list(islice(texts, AT_ONCE)):
        ids = [number for e in tokenizer.encode_batch_fast(some) for number in e.ids]
        tokens.append(torch.tensor(ids, dtype=torch.int32))
    return torch.cat(tokens)


def _key(documents: Documents, vocabulary: int) -> str:
    head = f"{CACHE_FORMAT} {tokenizers.__version__} {vocabulary} {len(documents.training)}"
    digest = hashlib.sha256(head.encode())
    for document in documents.training + documents.validation:
        text = document.text.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:32]


def _save(corpus: Corpus, file: BinaryIO) -> None:
    np.savez(
        file,
        training=corpus.training.numpy(),
        validation=corpus.validation.numpy(),
        tokenizer=np.array(corpus.tokenizer.to_str()),
    )


def _load(path: Path) -> Corpus:
    with np.load(path, allow_pickle=False) as stored:  # reading checks the checksums
        training, validation = (torch.from_numpy(stored[k]) for k in ("training", "validation"))
        return Corpus(training, validation, Tokenizer.from_str(str(stored["tokenizer"])))


@dataclass(frozen=True)
class Windows:
    """Inputs and the tokens that follow each, int32, [count, context]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def tokens(self) -> int:
        """How many targets there are."""
        return self.inputs.numel()

    def rows(self, which: Tensor) -> Windows:
        """Those of these indices, or those where a mask is True."""
        return Windows(self.inputs[which], self.targets[which])

    def spread(self, count: int) -> Windows:
        """At most `count` of them, evenly over the text."""
        return self.rows(torch.linspace(0, len(self) - 1, min(count, len(self))).long())

    def chunks(self, size: int) -> Iterator[Windows]:
        """All of them, `size` at a time."""
        pairs = zip(self.inputs.split(size), self.targets.split(size), strict=True)
        return (Windows(*pair) for pair in pairs)

    def long(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Inputs and targets as int64, as the models take them."""
        return self.inputs.to(device, torch.int64), self.targets.to(device, torch.int64)


def windows(tokens: Tensor, context: int, part: str) -> Windows:
    """Windows of `context` tokens, as views: each token but the first is a target once.

    Raises InputError naming the `part` of the text where it is too short for one window.
    """
    count = (len(tokens) - 1) // context
    if count < 1:
        raise InputError(
            f"--data must hold more text: its {part} part has {len(tokens)} tokens, "
            f"and a context of {context} needs at least {context + 1}"
        )
    length = count * context
    inputs, targets = tokens[:length], tokens[1 : length + 1]
    return Windows(inputs.view(count, context), targets.view(count, context))


class Sampler:
    """Draws from `range(count)` without replacement within an epoch.

    The order of an epoch is a function of (seed, epoch) alone, so two integers are the whole state
    and a resumed run draws what the uninterrupted one would have drawn.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self.epoch = self.position = 0
        self._order = self._shuffled()

    def take(self, size: int) -> Tensor:
        """The next `size` indices, 1 or more, int64; continues in the next epoch where one ends."""
        drawn = []
        while size > 0:
            if self.position == self.count:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            part = self._order[self.position : self.position + size]
            self.position += len(part)
            size -= len(part)
            drawn.append(part)
        return torch.cat(drawn)

    def state_dict(self) -> dict[str, int]:
        """Epoch and position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state_dict` was called; count and seed must be those of that sampler."""
        if not 0 <= state["position"] <= self.count:
            raise ValueError(f"position must be from 0 to {self.count}, got {state['position']}")
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> Tensor:
        generator = np.random.default_rng([self.seed, self.epoch])
        return torch.from_numpy(generator.permutation(self.count))
