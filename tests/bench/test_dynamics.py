"""The study of the dynamics: each claim holds, and can fail; the figures; the command line."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")
pytest.importorskip("rich", reason="needs the bench extra: rich")
pytest.importorskip("scipy", reason="needs the bench extra: scipy")
pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from matplotlib.figure import Figure
from rich.console import Console

from bench.studies.dynamics import __main__ as command
from bench.studies.dynamics import (
    convex,
    deep_linear,
    edge,
    generalization,
    implicit_bias,
    kernel,
    optimizers,
    scale,
)
from bench.studies.dynamics.__main__ import SECTIONS
from bench.studies.dynamics.block_adam import BlockAdam
from bench.studies.stages import Stages
from fusedstep.dynamics import deep_linear_modes

SLOW = ("optimizers", "scale")  # trained many times

CLAIMS = [
    pytest.param(name, claim, id=f"{name}-{claim.__name__}",
                 marks=[pytest.mark.slow] if name in SLOW else [])
    for name, section in SECTIONS.items()
    for claim in section.claims
]  # fmt: skip
FAST = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SECTIONS]


@functools.cache
def found(name: str) -> Any:
    with Stages(Console(file=io.StringIO())) as stages:
        return SECTIONS[name].run(SECTIONS[name].quick, stages)


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_the_claim_holds(name, claim):
    outcome = claim(found(name))
    assert outcome.held is True, outcome.numbers  # a bool, which JSON can hold
    assert any(letter.isdigit() for letter in outcome.numbers)


# For each claim something that it must notice.


def _run_above(run: edge.Run) -> edge.Run:
    """A run whose sharpness stays where it was at the start."""
    return replace(run, sharpness=[run.sharpness[0]] * len(run.sharpness))


def _flat_catapults(f: edge.Found) -> edge.Found:
    """Catapults that converge as sharp as they were."""
    return replace(f, catapults=[replace(c, sharpness=[1.0]) for c in f.catapults])


def _in_one_go(f: deep_linear.Found) -> deep_linear.Found:
    """All modes in the time of the first."""
    s = np.array(f.settings.strengths)
    modes = np.outer(f.modes[:, 0] / s[0], s)
    cuts = np.tril(np.ones((len(s) + 1, len(s))), -1) * s
    errors = np.linalg.norm(modes[:, None] - cuts, axis=2) / np.linalg.norm(s)
    return replace(f, modes=modes, errors=errors)


def _same(values: dict[Any, Any]) -> dict[Any, Any]:
    """The first entry everywhere."""
    first = next(iter(values.values()))
    return dict.fromkeys(values, first)


SPOILED: dict[Callable, Callable[[Any], Any]] = {
    convex.every_step_descends: lambda f: replace(f, gradients=[3 * g for g in f.gradients]),
    convex.convexity_gives_one_over_t: lambda f: replace(f, flat=list(np.sqrt(f.flat))),
    convex.strong_convexity_gives_a_linear_rate: lambda f: replace(
        f, strong=[1 / (t + 1) for t in range(len(f.strong))]
    ),
    convex.newton_doubles_the_digits: lambda f: replace(f, newton=f.strong),
    generalization.the_optimizer_decides: lambda f: replace(f, runs=_same(f.runs)),
    generalization.the_rate_decides: lambda f: replace(f, runs=_same(f.runs)),
    generalization.the_start_decides: lambda f: replace(f, runs=_same(f.runs)),
    implicit_bias.gradient_descent_finds_the_pseudo_inverse: lambda f: replace(
        f, from_zero=f.to_the_shortest
    ),
    implicit_bias.from_elsewhere_it_finds_the_nearest: lambda f: replace(
        f, to_the_shortest=f.from_elsewhere
    ),
    implicit_bias.logistic_regression_goes_to_the_max_margin: lambda f: replace(
        f, angles=[1 / t for t in f.steps]
    ),
    implicit_bias.its_length_is_the_logarithm: lambda f: replace(
        f, lengths=[length**2 for length in f.lengths]
    ),
    kernel.a_wide_network_follows_its_kernel: lambda f: replace(f, off=_same(f.off)),
    kernel.the_kernel_freezes: lambda f: replace(f, kernel_change=_same(f.kernel_change)),
    deep_linear.modes_are_learned_at_the_predicted_times: lambda f: replace(
        f,
        predicted=deep_linear_modes(
            f.settings.strengths, 1e-6, f.settings.lr, f.settings.steps
        ).numpy(),
    ),
    deep_linear.the_time_is_inverse_to_the_strength: _in_one_go,
    deep_linear.it_passes_by_every_rank: _in_one_go,
    edge.a_catapult_lands_where_it_is_flat: _flat_catapults,
    edge.training_sharpens: lambda f: replace(f, sgd=[_run_above(run) for run in f.sgd]),
    edge.gradient_descent_stays_at_two_over_lr: lambda f: replace(
        f, sgd=[replace(run, threshold=2 * run.threshold) for run in f.sgd]
    ),
    edge.adam_stays_at_38_over_lr: lambda f: replace(
        f, adam=[replace(run, threshold=2 / run.lr) for run in f.adam]
    ),
    scale.training_does_not_see_the_scale: lambda f: replace(f, scaled=f.fixed),
    scale.the_weights_grow: lambda f: replace(f, norms=f.norms[::-1]),
    scale.the_best_rate_transfers: lambda f: replace(f, transferred=f.standard),
    optimizers.one_rate_a_block_is_nearly_adam: lambda f: replace(f, rates=_same(f.rates)),
    optimizers.muon_is_steepest_in_the_spectral_norm: lambda f: replace(
        f, alignment=dict.fromkeys(f.alignment, f.alignment["SGD"])
    ),
    optimizers.at_equal_spectral_norm_it_descends_most: lambda f: replace(f, drops=_same(f.drops)),
}


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_the_claim_can_fail(name, claim):
    assert not claim(SPOILED[claim](found(name))).held


@pytest.mark.parametrize("name", FAST)
def test_the_figure_is_drawn(name, tmp_path: Path):
    figure = SECTIONS[name].draw(found(name))
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "page.png")
    assert all(axes.get_title(loc="left") and axes.get_xlabel() for axes in figure.axes)


def test_the_largest_margin_is_that_of_the_support_vectors():
    points = torch.tensor([[0.5, 1.5], [3.0, -1.0], [4.0, 4.0]], dtype=torch.float64)
    w = implicit_bias.max_margin(points)
    assert torch.allclose(w, torch.tensor([0.5, 0.5], dtype=torch.float64), atol=1e-12)


def test_the_first_step_of_the_block_optimizer_has_one_length_a_block():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3, bias=False)  # a block a row
    before = model.weight.detach().clone()
    gradient = torch.randn(3, 5) * torch.tensor([[1e-3], [1.0], [1e3]])
    model.weight.grad = gradient.clone()
    BlockAdam(model, 0.1).step(0.5)
    step = before - model.weight.detach()
    expected = 0.05 * gradient / gradient.square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(step, expected, rtol=1e-4, atol=1e-7)


def test_the_command_writes_all_it_found(tmp_path: Path):
    screen = io.StringIO()
    arguments = ["convex", "deep_linear", "--quick", "--out", str(tmp_path)]
    assert command.run(arguments, Console(file=screen, width=140)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "convex.png", "convex.json", "deep_linear.png", "deep_linear.json",
    }  # fmt: skip
    written = json.loads((tmp_path / "deep_linear.json").read_text())
    assert len(written["claims"]) == 3
    assert all(claim["held"] for claim in written["claims"])
    assert written["settings"]["hidden"] == 100
    assert "Descent lemma" in screen.getvalue()


def test_the_command_says_by_its_status_that_a_claim_fails(tmp_path: Path, monkeypatch):
    section = SECTIONS["deep_linear"]
    monkeypatch.setitem(
        SECTIONS, "deep_linear", replace(section, run=lambda *_: _in_one_go(found("deep_linear")))
    )
    arguments = ["deep_linear", "--out", str(tmp_path)]
    assert command.run(arguments, Console(file=io.StringIO())) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--fast", "unrecognized arguments: --fast"), ("edges", "got edges")],
)
def test_a_wrong_argument_is_refused_in_a_sentence(argument, message, capsys):
    assert command.main([argument]) == 2
    assert message in capsys.readouterr().err
