"""The text of the language model: reading and splitting files, tokens and their cache, sampling."""

import os
import random
from collections import Counter

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from bench.command import InputError
from bench.studies.language_model import corpus as corpus_module
from bench.studies.language_model.corpus import (
    PART,
    Document,
    Sampler,
    parts,
    read_documents,
    split_by_file,
    tokenise,
    windows,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fusedstep"


@pytest.fixture
def folder(tmp_path):
    """Twelve files of made-up words, one of them in a folder of its own."""
    words = ["".join(random.Random(i).choices("abcdefgh", k=5)) for i in range(60)]
    root = tmp_path / "texts"
    (root / "inner").mkdir(parents=True)
    for i in range(12):
        text = " ".join(random.Random(100 + i).choices(words, k=200)) + "\n"
        (root / ("inner/deep.txt" if i == 0 else f"{i}.txt")).write_text(text)
    return root


def names(documents):
    return {document.name for document in documents}


def test_a_folder_is_split_by_file_the_same_way_each_time(folder):
    documents = read_documents(folder)
    assert names(documents.training).isdisjoint(names(documents.validation))
    everything = names(documents.training) | names(documents.validation)
    assert everything == {f"{i}.txt" for i in range(1, 12)} | {"inner/deep.txt"}
    assert read_documents(folder) == documents


def test_validation_gets_a_tenth_of_the_characters_by_whole_files_where_it_can():
    many = [Document(f"{i}", "x" * (1 + i % 7)) for i in range(500)]
    training, validation = split_by_file(many)
    share = sum(len(d.text) for d in validation) / sum(len(d.text) for d in many)
    assert 0.095 < share <= 0.1
    assert len(training) + len(validation) == len(many)
    book, readme = Document("book", "x" * 899 + "y" * 100), Document("README", "z")
    start, end = Document("book", "x" * 899 + "y"), Document("book", "y" * 99)
    assert split_by_file([readme, book]) == ([start], [readme, end])


def test_a_single_file_gives_its_end_to_validation(tmp_path):
    (tmp_path / "one.txt").write_text("0123456789" * 10)
    documents = read_documents(tmp_path / "one.txt")
    assert [d.text for d in documents.training] == ["0123456789" * 9]
    assert [d.text for d in documents.validation] == ["0123456789"]


def test_hidden_and_binary_files_are_left_out_of_a_folder_and_the_latter_named(folder):
    (folder / ".hidden").write_text("secret")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    documents = read_documents(folder)
    assert documents.left_out == ["picture.png"]
    assert ".hidden" not in names(documents.training) | names(documents.validation)


def test_a_mark_of_utf_8_is_no_text_and_line_ends_stay(tmp_path):
    (tmp_path / "one.txt").write_bytes(b"\xef\xbb\xbf" + b"line\r\n" * 10)
    assert read_documents(tmp_path / "one.txt").training[0].text == "line\r\n" * 9


def test_links_to_folders_are_left_out_and_named(folder):
    (folder / "again").symlink_to(".")
    documents = read_documents(folder)
    assert documents.left_out == ["again"]
    assert len(documents.training) + len(documents.validation) == 12


def test_the_default_text_is_the_standard_library_without_its_tests():
    documents = read_documents(None)
    found = names(documents.training) | names(documents.validation)
    assert "argparse.py" in found
    assert all(name.endswith(".py") for name in found)
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in found)


def test_text_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, monkeypatch):
    def refused(path, message):
        with pytest.raises(InputError, match=f"^--data must {message}"):
            read_documents(path)

    refused(tmp_path / "missing", "exist, got .*missing$")
    (tmp_path / "empty.txt").write_text(" \n")
    refused(tmp_path / "empty.txt", "hold some UTF-8 text, got none in .*empty.txt$")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "hold some UTF-8 text, got none in .*empty$")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    refused(tmp_path / "latin.txt", "be UTF-8 text, got .*latin.txt: unexpected end of data 0xe9")
    (tmp_path / "long.txt").write_bytes(b"a" * 100_000 + b"\xff" + b"a" * 100_000)
    refused(tmp_path / "long.txt", "be UTF-8 text, .*: invalid start byte 0xff at position 100000$")
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16-le"))
    refused(tmp_path / "utf16.txt", "be UTF-8 text, got .*utf16.txt: NUL at character 1, ")
    refused(tmp_path / ("x" * 300), "be readable, got .*xx: File name too long$")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "be a file or a folder, got .*pipe$")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "dangling").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "locked", "be readable, got .*dangling: No such file")
    monkeypatch.setattr(corpus_module, "MOST_CHARACTERS", 2_000_000)
    (tmp_path / "large").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "large" / name).write_text("é" * 1_000_000)
    refused(tmp_path / "large", "hold at most 2 million characters, got more in .*large$")


def test_tokens_give_back_the_text_of_every_file(folder):
    documents = read_documents(folder)
    corpus = tokenise(documents, 300, print)
    for tokens, part in (
        (corpus.training, documents.training),
        (corpus.validation, documents.validation),
    ):
        assert tokens.dtype == torch.int32
        text = corpus.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        assert text == "".join(document.text + "<|endoftext|>" for document in part)
    assert corpus.tokenizer.get_vocab_size() == 300
    assert len(corpus.training) < 0.6 * sum(len(d.text) for d in documents.training)


def test_parts_end_before_a_space_and_have_the_tokens_of_the_whole(folder):
    documents = read_documents(folder)
    tokenizer = tokenise(documents, 300, print).tokenizer
    words = " ".join(document.text for document in documents.training)
    for text in (words, words.replace(" ", "  \n"), words.replace(" ", "\r\n\r\n ")):
        found = list(parts(text))
        assert "".join(found) == text
        assert len(found) > 5
        assert all(PART <= len(part) < 2 * PART for part in found[:-1])
        tokens = [number for part in found for number in tokenizer.encode(part).ids]
        assert tokens == tokenizer.encode(text).ids


@pytest.mark.parametrize("text", ["a" * 10_000, "x" + " " * 10_000 + "y"])
def test_the_tokenizer_learns_from_no_word_longer_than_two_parts(tmp_path, text):
    """Its time is the square of a word's length: 300 KB without a space took over a minute."""
    (tmp_path / "one.txt").write_text(text)
    corpus = tokenise(read_documents(tmp_path / "one.txt"), 300, print)
    assert max(map(len, corpus.tokenizer.get_vocab())) <= 2 * PART
    assert corpus.tokenizer.decode(corpus.training.tolist()) == text[:-1000]


def test_the_tokenizer_never_sees_the_validation_files(folder):
    documents = read_documents(folder)
    first = tokenise(documents, 300, print)
    documents.validation[0] = Document("other", "zzzz" * 300)
    second = tokenise(documents, 300, print)
    assert first.tokenizer.to_str() == second.tokenizer.to_str()
    assert first.fingerprint != second.fingerprint


def test_the_cache_is_used_for_the_same_text_only(folder, cache, monkeypatch):
    first = tokenise(read_documents(folder), 300, print)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "_make", None)  # calling it would raise
        again = tokenise(read_documents(folder), 300, print)
    assert again.fingerprint == first.fingerprint
    assert again.tokenizer.to_str() == first.tokenizer.to_str()

    with open(folder / "1.txt", "a") as file:
        file.write("more")
    assert tokenise(read_documents(folder), 300, print).fingerprint != first.fingerprint
    tokenise(read_documents(folder), 301, print)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage"])
def test_a_damaged_cache_is_made_anew_and_said_so(folder, cache, damage):
    first = tokenise(read_documents(folder), 300, print)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut": content[:100], "flip": content, "garbage": b"not a cache"}[damage]
    path.write_bytes(damaged)
    said = []
    assert tokenise(read_documents(folder), 300, said.append).fingerprint == first.fingerprint
    assert "cannot be read" in said[0]
    said.clear()
    tokenise(read_documents(folder), 300, said.append)
    assert said == []


def test_a_cache_that_cannot_be_written_is_done_without(folder, cache):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    said = []
    assert len(tokenise(read_documents(folder), 300, said.append).training) > 0
    assert "cannot be kept" in said[-1]


def test_windows_pair_each_token_with_the_next():
    some = windows(torch.arange(12), 5, "training")
    assert some.inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert some.targets.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    with pytest.raises(InputError, match="its validation part has 5 tokens, and a context of 5"):
        windows(torch.arange(5), 5, "validation")


def test_an_epoch_has_each_sequence_once_in_an_order_of_its_own():
    sampler = Sampler(10, seed=3)
    drawn = torch.cat([sampler.take(size) for size in (1, 6, 7, 3, 25, 8)]).tolist()
    epochs = [drawn[i : i + 10] for i in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert max(Counter(map(tuple, epochs)).values()) == 1
    assert Sampler(10, seed=3).take(50).tolist() == drawn
    assert Sampler(10, seed=4).take(50).tolist() != drawn


@pytest.mark.parametrize("before", [1, 10, 33])
def test_a_sampler_goes_on_from_its_state(before):
    sampler, other = Sampler(10, seed=1), Sampler(10, seed=1)
    sampler.take(before)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.take(27), sampler.take(27))
