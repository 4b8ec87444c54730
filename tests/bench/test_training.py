"""The language model and its training: accumulation, comparison, checkpoints."""

import copy
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from bench.command import InputError
from bench.record import ROOT
from bench.studies.language_model import checkpoint
from bench.studies.language_model.comparison import NAMES, Comparison, Step, Validation
from bench.studies.language_model.corpus import Corpus
from bench.studies.language_model.model import GPT, Shape
from bench.studies.language_model.training import SIZES, Recipe, Run, torch_update

SHAPE = Shape(vocabulary=50, context=8, layers=2, heads=2, width=16, dropout=0.1)
RECIPE = Recipe(
    SHAPE,
    steps=12,
    first_batch=2,
    batch=5,
    micro_batch=3,
    peak_rate=1e-2,
    validation_windows=4,
    seed=7,
)


@pytest.fixture
def corpus():
    # Each token is followed by one of three, so there is something to learn.
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 4, (400,), generator=generator)
    tokens = (steps.cumsum(0) % 50).int()
    return Corpus(training=tokens[:300], validation=tokens[300:], tokenizer=None)


def test_gpt2_has_the_148_tensors_and_124_million_parameters():
    with torch.device("meta"):
        model = GPT(SIZES["gpt2"].shape)
    parameters = list(model.parameters())
    assert len(parameters) == 148
    assert sum(p.numel() for p in parameters) == 124_439_808 + (50304 - 50257) * 768
    assert sum(p.dim() >= 2 for p in parameters) == 50


def test_a_new_model_knows_nothing_and_looks_only_back():
    torch.manual_seed(0)
    model = GPT(Shape(vocabulary=50, context=8, layers=2, heads=2, width=16))
    tokens = torch.randint(50, (4, 8))
    assert model(tokens, tokens.roll(-1, 1)).item() == pytest.approx(math.log(50), abs=0.05)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_what_writes_into_the_residual_stream_starts_smaller():
    torch.manual_seed(0)
    model = GPT(Shape(vocabulary=100, context=8, layers=8, heads=2, width=64))
    deviation = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    for name, found in deviation.items():
        writes = name.endswith(("projection.weight", "mlp.2.weight"))
        assert found == pytest.approx(0.02 / 4 if writes else 0.02, rel=0.1), name


def finish(comparison):
    while not comparison.finished:
        comparison.advance()


def test_accumulated_gradients_are_those_of_the_whole_batch_with_a_short_last_part():
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, dropout=0.0)).double()
    inputs, targets = torch.randint(50, (5, 8)), torch.randint(50, (5, 8))
    reference = copy.deepcopy(model)
    # cross_entropy of GPT.forward is in float32: take the reference's in float64
    logits = reference.logits(inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected.backward()

    seen = {}

    def keep_gradients(model):
        def update():
            seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
            return torch.zeros(())

        return torch.optim.SGD(model.parameters()), update

    measured = Run(model, keep_gradients, RECIPE).step(inputs, targets, 0.1)
    assert measured.loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_a_run_follows_the_rate_and_clears_gradients():
    run = Run(GPT(SHAPE), torch_update, RECIPE)
    tokens = torch.randint(50, (5, 8))
    run.step(tokens, tokens, 0.0)
    before = copy.deepcopy(run.model.state_dict())
    run.step(tokens, tokens, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in run.model.state_dict().items())
    run.step(tokens, tokens, 0.1)
    assert not torch.equal(run.model.tokens.weight, before["tokens.weight"])
    assert all(p.grad is None for p in run.model.parameters())


def test_both_runs_start_equal_take_turns_and_learn_the_same(corpus, monkeypatch):
    comparison = Comparison(replace(RECIPE, steps=60), corpus)
    assert comparison.largest_difference()[0] == 0
    turns, batches = [], []
    step = Run.step

    def watched(run, inputs, targets, rate):
        turns.append("torch" if run is comparison.runs["torch"] else "fusedstep")
        batches.append(inputs)
        return step(run, inputs, targets, rate)

    monkeypatch.setattr(Run, "step", watched)
    finish(comparison)
    assert turns == [*NAMES, *reversed(NAMES)] * 30
    assert all(torch.equal(*batches[i : i + 2]) for i in range(0, 120, 2))
    # dropout is on: were its masks not the same, the losses would be far apart
    for record in comparison.steps:
        assert record.runs["torch"].loss == pytest.approx(record.runs["fusedstep"].loss, abs=1e-2)
        assert record.runs["torch"].norm == pytest.approx(record.runs["fusedstep"].norm, rel=0.1)
    assert comparison.steps[0].runs["torch"].loss == comparison.steps[0].runs["fusedstep"].loss
    last = comparison.validations[-1]
    assert last.step == 60
    assert all(last.losses[name] < 0.8 * math.log(50) for name in NAMES)


def test_the_batch_ramps_and_tokens_add_up(corpus):
    comparison = Comparison(RECIPE, corpus)
    finish(comparison)
    sizes = [record.batch_tokens // SHAPE.context for record in comparison.steps]
    assert sizes[0] == 2
    assert sizes[-1] == 5
    assert sizes == sorted(sizes)
    assert sum(sizes) * SHAPE.context == comparison.steps[-1].tokens
    assert [record.rate for record in comparison.steps] == [RECIPE.rate(i) for i in range(12)]


def test_steps_and_validations_survive_being_written(corpus):
    comparison = Comparison(RECIPE, corpus)
    step, validation = comparison.advance(), comparison.validations[0]
    assert list(step.flat()) == ["step", "tokens", "batch_tokens", "rate", *NAMES]
    assert list(validation.flat()) == ["step", *NAMES]
    assert Step.of(step.flat()) == step
    assert Validation.of(validation.flat()) == validation


def without_times(records):
    return [
        {
            key: (value["loss"], value["norm"]) if isinstance(value, dict) else value
            for key, value in record.items()
        }
        for record in records
    ]


def assert_same(left, right):
    """Trees of dicts, lists, tensors and numbers, equal to the last bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    else:
        assert left == right


@pytest.mark.parametrize("stop", [1, 6, 11])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(corpus, tmp_path, stop):
    straight = Comparison(RECIPE, corpus)
    first = Comparison(RECIPE, corpus)
    for _ in range(stop):
        straight.advance()
        first.advance()
    checkpoint.save(first, corpus.fingerprint, tmp_path / "c.pt")
    torch.rand(3)  # what others draw meanwhile changes nothing
    second = Comparison(RECIPE, corpus)
    checkpoint.resume(second, corpus.fingerprint, tmp_path / "c.pt")
    finish(straight)
    finish(second)
    left, right = straight.state_dict(), second.state_dict()
    for state in (left, right):
        state["steps"] = without_times(state["steps"])
    assert_same(left, right)
    moments = right["runs"]["fusedstep"]["optimizer"]["state"]
    assert moments[0]["exp_avg_sq"].abs().max() > 0


@pytest.fixture
def kept(corpus, tmp_path):
    """A checkpoint after two steps, and what it is of."""
    comparison = Comparison(RECIPE, corpus)
    for _ in range(2):
        comparison.advance()
    checkpoint.save(comparison, corpus.fingerprint, tmp_path / "c.pt")
    return tmp_path / "c.pt", comparison


@pytest.mark.parametrize("damage", ["a moment", "the settings", "cut early", "cut late"])
def test_a_damaged_checkpoint_is_refused(kept, corpus, damage):
    path, comparison = kept
    content = bytearray(path.read_bytes())
    moment = comparison.runs["fusedstep"].optimizer.state_dict()["state"][3]["exp_avg"]
    if damage.startswith("cut"):
        content = content[: 100 if damage == "cut early" else -100]
    else:
        found = moment.numpy().tobytes() if damage == "a moment" else b"peak_rate"
        content[content.index(found)] ^= 1
    path.write_bytes(content)
    fresh = Comparison(RECIPE, corpus)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(InputError, match=f"^--resume: {path} is damaged"):
        checkpoint.resume(fresh, corpus.fingerprint, path)
    assert_same(fresh.state_dict(), before)


def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path, corpus):
    fresh = Comparison(RECIPE, corpus)
    path = tmp_path / "c.pt"
    with pytest.raises(InputError, match=r"^--resume: there is no checkpoint"):
        checkpoint.resume(fresh, corpus.fingerprint, path)
    path.write_text("text")
    with pytest.raises(InputError, match="is damaged or not a checkpoint"):
        checkpoint.resume(fresh, corpus.fingerprint, path)
    torch.save({"model": {}}, path)
    with pytest.raises(InputError, match="is not a checkpoint of this program's format 1"):
        checkpoint.resume(fresh, corpus.fingerprint, path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"^--resume: {path} must be a file$"):
        checkpoint.resume(fresh, corpus.fingerprint, path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": None}, "AttributeError: "),
        ({"settings": {1: 2}}, "TypeError: "),
        ({"format": torch.ones(2)}, "RuntimeError: Boolean value of Tensor"),
        ({"comparison": {}}, "KeyError: 'runs'"),
        ({"comparison": {"runs": {"torch": {"model": {}}}}}, "RuntimeError: Error.s. in loading"),
        ({"sampler": {"epoch": 0, "position": 1000}}, "ValueError: position must be from 0 to 37"),
        ({"a class": Step}, "UnpicklingError: Weights only load failed"),
    ],
)
def test_a_checkpoint_with_other_entries_is_refused_in_a_sentence(kept, corpus, changes, reason):
    path, comparison = kept
    content = torch.load(path, weights_only=True)
    if "sampler" in changes:
        content["comparison"] |= changes
    else:
        content |= changes
    torch.save(content, path)
    refusal = f"^--resume: {path} is damaged or not a checkpoint: {reason}[^\n]*$"
    with pytest.raises(InputError, match=refusal):
        checkpoint.resume(comparison, corpus.fingerprint, path)


def test_a_checkpoint_of_other_settings_or_text_is_refused_with_the_difference(kept, corpus):
    path, _ = kept
    other = Comparison(replace(RECIPE, steps=20, shape=replace(SHAPE, layers=3)), corpus)
    with pytest.raises(InputError, match="written with layers 2 where this run has 3, steps 12"):
        checkpoint.resume(other, corpus.fingerprint, path)
    with pytest.raises(InputError, match=r"written with text [0-9a-f]{12} where this run has abc$"):
        checkpoint.resume(Comparison(RECIPE, corpus), "abc", path)


def test_a_loss_that_is_not_finite_ends_the_training_with_advice(corpus):
    comparison = Comparison(replace(RECIPE, peak_rate=1e30), corpus)
    with pytest.raises(InputError, match=r"loss of the .* run is .* a smaller --lr may help"):
        finish(comparison)


KILLED = """
import os, signal, sys
from pathlib import Path
from bench.record import write_whole

def half(file):
    file.write(b"new" * 100_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), half)
"""


def test_a_kill_in_the_middle_of_writing_leaves_the_old_checkpoint_usable(kept, corpus):
    path, comparison = kept
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.with_name("c.pt.partial").stat().st_size == 300_000
    fresh = Comparison(RECIPE, corpus)
    checkpoint.resume(fresh, corpus.fingerprint, path)
    assert_same(fresh.state_dict(), comparison.state_dict())
    checkpoint.save(fresh, corpus.fingerprint, path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["c.pt"]


def test_a_full_disk_is_reported_in_a_sentence(kept, corpus, monkeypatch):
    path, comparison = kept
    before = path.read_bytes()

    def full(content, file):
        file.write(b"something")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"cannot be written: \[Errno 28\] No space left"):
        checkpoint.save(comparison, corpus.fingerprint, path)
    assert path.read_bytes() == before
