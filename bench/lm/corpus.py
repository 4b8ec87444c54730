"""Text to tokens: a byte-pair tokenizer trained on the training files, cached with what it made."""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from .documents import Document, Documents
from .errors import InputError
from .files import write_whole

END_OF_TEXT = "<|endoftext|>"  # stands between files, as in GPT-2
CACHE_FORMAT = 1


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

    `say` is told about slow and unusual things. The cache is a file in `cache_folder()` named
    by a hash of the text; a damaged one is made anew, one that cannot be written is done without.
    """
    path = cache_folder() / f"corpus-{_key(documents, vocabulary)}.npz"
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"The cached tokens in {path} cannot be read ({error}); making them anew.")

    size = sum(len(document.text) for document in documents.training)
    say(f"Training a {vocabulary}-token tokenizer on {size / 1e6:.1f} M characters, this once.")
    start = time.perf_counter()
    corpus = _make(documents, vocabulary)
    say(f"That took {time.perf_counter() - start:.1f} s.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: _save(corpus, file))
    except OSError as error:
        say(f"It cannot be kept for the next time: {path}: {error.strerror}.")
    return corpus


def windows(tokens: Tensor, context: int, part: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets, views of [count, context]: each token but the first is a target once.

    Raises InputError naming the `part` of the text where it is too short for one window.
    """
    count = (len(tokens) - 1) // context
    if count < 1:
        raise InputError(
            f"--data must hold more text: its {part} part has {len(tokens)} tokens, "
            f"and a context of {context} needs at least {context + 1}"
        )
    length = count * context
    return tokens[:length].view(count, context), tokens[1 : length + 1].view(count, context)


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
    tokenizer.train_from_iterator((document.text for document in documents.training), trainer)
    return Corpus(
        _encode(documents.training, tokenizer), _encode(documents.validation, tokenizer), tokenizer
    )


def _encode(documents: list[Document], tokenizer: Tokenizer) -> Tensor:
    end = tokenizer.token_to_id(END_OF_TEXT)
    encodings = tokenizer.encode_batch_fast([document.text for document in documents])
    return torch.cat([torch.tensor([*e.ids, end], dtype=torch.int32) for e in encodings])


def _key(documents: Documents, vocabulary: int) -> str:
    head = f"{CACHE_FORMAT} {tokenizers.__version__} {vocabulary} {len(documents.training)}"
    digest = hashlib.sha256(head.encode())
    for document in documents.training + documents.validation:
        text = document.text.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:32]


def _save(corpus: Corpus, file) -> None:
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
