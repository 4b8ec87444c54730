"""The step's cases: shapes, least bytes, names, and that fusedstep's side does the named work."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch

from bench import memory, step
from bench.case import MAX_NORM, Work, random_params
from bench.record import ROOT
from bench.step_cases import (
    BILLION,
    MLP,
    MODES,
    MUON,
    RULES,
    SETS,
    SMALL,
    fused_step,
    held_bytes,
    least_bytes,
    matrices_of,
    newton_schulz_operations,
    our_side,
    torch_step,
)

CPU = torch.device("cpu")
TINY = ((3, 5), (7,))
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def shapes_for(rule) -> tuple:
    return matrices_of(TINY) if rule is MUON else TINY


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("mlp", 6, 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10),
        ("400-small", 400, 200 * (64 * 64 + 64)),
        ("resnet50", 161, 25_557_032),  # as torchvision counts
        ("gpt2", 148, 124_439_808),  # as OpenAI's weights count
        ("llama-3.2-1b", 146, 1_235_814_400),  # as Meta's model card counts
        # 1/16 of OLMoE-1B-7B's 6,919,161,856 without both embeddings and the last norm.
        ("olmoe-layer", 201, (6_919_161_856 - 2 * 50_304 * 2048 - 2048) // 16),
    ],
)
def test_models_have_their_published_sizes(name: str, tensors: int, elements: int) -> None:
    shapes = SETS[name]()
    assert (len(shapes), sum(map(prod, shapes))) == (tensors, elements)


def test_least_bytes_count_every_number_as_it_is_stored() -> None:
    def bytes_of(variant: str, mode: str = "float32", clip: bool = True) -> float:
        work = step.work_of(variant, BILLION, mode, clip)
        assert work.elements == 10**9
        return least_bytes(work) / 10**9

    assert bytes_of("adamw") == bytes_of("adam") == 32
    assert bytes_of("adamw", clip=False) == 28
    assert bytes_of("adamw", "bfloat16") == 24
    assert bytes_of("adamw", "int8") == 16 + 4 * (1 + 4 / 128)
    assert bytes_of("adamw", "master") == 2 * 2 + 8 + 16
    assert bytes_of("rmsprop") == 40
    assert bytes_of("rmsprop-plain") == 24
    assert {bytes_of(name) for name in ("sgd", "adagrad", "lion", "muon")} == {24}
    assert {bytes_of(name, "bfloat16") for name in ("sgd", "adagrad", "lion")} == {20}
    # The state of narrow parameters is float32 all the same.
    work = Work("adamw", {}, "float32", True, BILLION, torch.bfloat16)
    assert least_bytes(work) == 24 * 10**9


def test_the_products_of_muon_are_counted_once() -> None:
    """For 2 x 3: a triangle of X Xᵀ (12), of its square (8), and the product with X (24)."""
    assert newton_schulz_operations(((2, 3), (3, 2)), steps=5) == 2 * 5 * (12 + 8 + 24)


@every_rule
def test_both_sides_do_the_same_work_with_the_states_that_are_counted(rule) -> None:
    shapes = shapes_for(rule)
    ours, theirs, more = (random_params(shapes, torch.float32, CPU) for _ in range(3))
    before = [p.clone() for p in ours]
    assert torch.nn.utils.get_total_norm([p.grad for p in ours]) > MAX_NORM
    for make, side in ((fused_step, ours), (torch_step, theirs)):
        call = make(side, rule)
        call()
        call()
    tolerance = {"rtol": 0.02, "atol": 1e-3} if rule is MUON else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours, theirs, **tolerance)
    assert not any(torch.equal(a, b) for a, b in zip(before, ours, strict=True))

    optimizer = rule.ours(more, **rule.arguments)
    optimizer.step()
    kept = [value for value in optimizer.state[more[0]].values() if value.shape == (3, 5)]
    assert len(kept) == rule.states(rule.arguments)


@pytest.mark.parametrize("variant", [*RULES, *step.VARIANTS])
@pytest.mark.parametrize("clip", [True, False])
def test_our_side_is_the_rule_with_or_without_the_clip(variant: str, clip: bool) -> None:
    work = step.work_of(variant, TINY, clip=clip)
    (side,) = our_side(work, CPU)
    side.sample(2)
    params = work.params(CPU)
    optimizer = RULES[work.rule].theirs(params, **work.arguments)
    for _ in range(2):
        if clip:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
    tolerance = {"rtol": 0.02, "atol": 1e-3} if variant == "muon" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(side.result(), params, **tolerance)
    assert side.state_bytes() >= 4 * work.elements * RULES[work.rule].states(work.arguments)


@pytest.mark.parametrize("mode", MODES)
def test_our_side_keeps_the_state_that_is_counted(mode: str) -> None:
    work = step.work_of("adamw", ((256, 128),), mode)
    (side,) = our_side(work, CPU)
    side.sample(1)
    master = 4 if mode == "master" else 0
    wanted = work.elements * (2 * MODES[mode].bytes + master)
    assert wanted <= side.state_bytes() <= wanted + 8  # and the number of steps
    assert side.result()[0].dtype == work.dtype
    assert held_bytes(work) > side.state_bytes()


def test_work_is_the_same_in_every_process_and_differs_by_seed() -> None:
    work = step.work_of("adamw", TINY)
    first, again = work.params(CPU), work.params(CPU)
    assert all(map(torch.equal, first, again))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first, again, strict=True))
    other = random_params(TINY, torch.float32, CPU, seed=1)
    assert not torch.equal(other[0], first[0])
    code = (
        "import torch; from bench.step import work_of; "
        f"print(work_of('adamw', {TINY}).params(torch.device('cpu'))[1].tolist())"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(first[1].tolist())


def test_the_selection_has_every_axis_and_names_nothing_twice() -> None:
    chosen = list(step.selection())
    names = [name for name, _ in chosen]
    assert len(set(names)) == len(names)
    works = dict(chosen)
    assert {work.rule for work in works.values()} == set(RULES)
    assert {work.mode for work in works.values()} == set(MODES)
    assert {work.clip for work in works.values()} == {True, False}
    assert {len(works[f"step/adamw/clip/{n}x64/float32"].shapes) for n in (1, 100, 10_000)} == {
        1, 100, 10_000,
    }  # fmt: skip
    assert works["step/adamw/clip/1e9/float32"].elements == 10**9
    for name in SETS:
        assert works[f"step/adamw/clip/{name}/float32"].shapes == SETS[name]()
    assert works["step/muon/clip/gpt2-layer/float32"].shapes == (
        (768, 2304), (768, 768), (768, 3072), (3072, 768),
    )  # fmt: skip
    assert works["step/muon/clip/mlp/float32"].shapes == matrices_of(MLP)
    assert len(works["step/muon/clip/400-small/float32"].shapes) == len(SMALL) / 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, as Linux has it")
def test_peak_memory_counts_what_was_touched() -> None:
    """In a process of its own: the peak of this one may lie far above what it uses now."""
    code = (
        "import torch; from bench.memory import peak_resident_bytes as peak; before = peak(); "
        "block = torch.ones(32 << 20, dtype=torch.float64); print(peak() - before, block.nbytes)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown, touched = map(int, result.stdout.split())
    assert 0.9 * touched < grown < 1.5 * touched


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, as Linux has it")
def test_memory_is_that_of_a_process_whose_steps_are_checked() -> None:
    sides = list(memory.sides_of(("rmsprop", "mlp", "float32"), CPU))
    assert [side.provider for side in sides] == ["fusedstep", "torch"]
    for side in sides:
        assert side.result() == []
        side.sample(2)
        assert side.peak_bytes() > side.state_bytes() >= 3 * 4 * sum(map(prod, MLP))
    ours, theirs = (torch.stack(side.result()) for side in sides)
    assert (ours > 0).all()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    assert len(list(memory.sides_of(("adamw", "mlp", "int8"), CPU))) == 1
