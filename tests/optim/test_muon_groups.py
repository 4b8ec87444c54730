"""Muon's groups: AdamW for what is no hidden matrix, one norm over both, what is refused."""

from __future__ import annotations

import math
from inspect import Parameter, signature
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedstep
from tests.support.refusals import Snapshot, refuses
from tests.support.tensors import assert_same_bits, copies, make_params, set_grads

MATRICES = [(8, 16), (16, 8), (8, 16), (3, 3)]
REST = [(16,), (40, 8), (), (0,), (2, 3, 4)]  # an embedding too
ADAMW: dict[str, dict[str, Any]] = {
    "defaults": {},
    "amsgrad": {"amsgrad": True, "lr": 0.05, "weight_decay": 0.3},
    "all": {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.2, "maximize": True},
    "tensor lr": {"lr": torch.tensor(0.01)},
}
every_adamw = pytest.mark.parametrize("adamw", ADAMW.values(), ids=ADAMW)


def both(
    seed: int = 0, adamw: dict[str, Any] | None = None, **options: Any
) -> tuple[list[Tensor], list[Tensor], fusedstep.Muon]:
    """Matrices, other parameters, and a Muon over both."""
    matrices, rest = make_params(*MATRICES, seed=seed), make_params(*REST, seed=seed + 1)
    groups = [{"params": matrices}, {"params": rest, "use_muon": False, **(adamw or {})}]
    return matrices, rest, fusedstep.Muon(groups, **{"lr": 0.02} | options)


@pytest.mark.parametrize("clip", [{}, {"max_norm": 1.0}, {"max_norm": 2.0, "norm_type": math.inf}])
@every_adamw
def test_the_rest_is_stepped_by_adamw_bit_for_bit(
    adamw: dict[str, Any], clip: dict[str, float]
) -> None:
    matrices, rest, muon = both(adamw=adamw, **clip)
    others, twins = copies(matrices), copies(rest)
    oracle = fusedstep.AdamW([{"params": others}, {"params": twins, **adamw}], **clip)
    for step in range(4):
        for params in (matrices + rest, others + twins):
            set_grads(params, seed=step)
        muon.step()
        oracle.step()
        if clip:
            assert_same_bits(muon.grad_norm, oracle.grad_norm, "the norm over all groups")
    for p, q in zip(rest, twins, strict=True):
        assert_same_bits(p, q)
        assert muon.state[p].keys() == oracle.state[q].keys()
        for name, value in muon.state[p].items():
            assert_same_bits(value, oracle.state[q][name], name)


def test_the_matrices_do_not_notice_the_rest() -> None:
    matrices, rest, muon = both()
    twins = copies(matrices)
    alone = fusedstep.Muon(twins, lr=0.02)
    for step in range(3):
        set_grads(rest, seed=9)
        for params, optimizer in ((matrices, muon), (twins, alone)):
            set_grads(params, seed=step)
            optimizer.step()
    for p, q in zip(matrices, twins, strict=True):
        assert_same_bits(p, q)


def test_groups_of_muon_have_options_of_their_own() -> None:
    each = [
        {"lr": 0.1, "momentum": 0.5},
        {"weight_decay": 0.5, "nesterov": False},
        {"ns_steps": 2, "adjust_lr_fn": "match_rms_adamw"},
        {"ns_coefficients": (2.0, -1.5, 0.5), "maximize": True},
    ]
    together, alone = make_params(*[(8, 16)] * 4), make_params(*[(8, 16)] * 4)
    optimizers = [
        fusedstep.Muon([{"params": [p], **o} for p, o in zip(together, each, strict=True)]),
        *(fusedstep.Muon([p], **o) for p, o in zip(alone, each, strict=True)),
    ]
    for step in range(3):
        set_grads(together, seed=step)
        set_grads(alone, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3)  # a batch may round in another order


def test_an_embedding_may_be_muons_and_a_matrix_may_be_adamws() -> None:
    params = make_params((8, 16), (8, 16))
    muon = fusedstep.Muon([{"params": params[:1]}, {"params": params[1:], "use_muon": False}])
    set_grads(params)
    muon.step()
    assert [set(muon.state[p]) for p in params] == [
        {"momentum_buffer"},
        {"step", "exp_avg", "exp_avg_sq"},
    ]


def test_only_adamw_and_nothing_at_all() -> None:
    rest = make_params(*REST)
    twins = copies(rest)
    muon = fusedstep.Muon([{"params": rest, "use_muon": False}])
    oracle = fusedstep.AdamW(twins)
    muon.step()  # no gradients: nothing happens
    assert not muon.state
    set_grads(rest)
    set_grads(twins)
    muon.step()
    oracle.step()
    for p, q in zip(rest, twins, strict=True):
        assert_same_bits(p, q)


def test_empty_matrices_step() -> None:
    params = make_params((0, 4), (4, 0), (0, 0), (2, 2))
    before = params[3].detach().clone()
    for ratio in ("original", "match_rms_adamw", "spectral_unclamped"):
        muon = fusedstep.Muon(params, adjust_lr_fn=ratio, max_norm=1.0)
        set_grads(params)
        muon.step()
    assert not torch.equal(params[3], before)


def test_a_group_that_is_added_later_steps_with_the_others() -> None:
    matrices, rest, muon = both()
    set_grads(matrices + rest)
    muon.step()
    (new,) = make_params((5,))
    muon.add_param_group({"params": [new], "use_muon": False, "lr": 0.5})
    before = new.detach().clone()
    set_grads([new])
    muon.step()
    assert not torch.equal(new, before)
    assert muon.param_groups[2]["betas"] == (0.9, 0.999)
    assert muon.param_groups[2]["weight_decay"] == 0.01


def test_adamws_groups_need_no_leave_of_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of torch 2.15 looks at the dimensions of every group's parameters."""

    def add_param_group(self: torch.optim.Muon, param_group: dict[str, Any]) -> None:
        super(torch.optim.Muon, self).add_param_group(param_group)
        if any(param.dim() < 2 for param in self.param_groups[-1]["params"]):
            raise ValueError("at least two dimensions")

    monkeypatch.setattr(torch.optim.Muon, "add_param_group", add_param_group, raising=False)
    with pytest.raises(ValueError, match="at least two dimensions"):
        torch.optim.Muon(make_params((16,)))
    matrices, rest, muon = both()
    set_grads(matrices + rest)
    muon.step()


def test_arguments_and_defaults_are_those_of_torch() -> None:
    """All of torch's in their places; everything else by keyword only."""
    ours, theirs = (dict(signature(m.Muon).parameters) for m in (fusedstep, torch.optim))
    assert [(p.name, p.default) for p in ours.values()][: len(theirs)] == [
        (p.name, p.default) for p in theirs.values()
    ]
    more = [p for name, p in ours.items() if name not in theirs]
    assert {p.kind for p in more} == {Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "argument", "must", "got", "kind"),
    [
        ({"ns_coefficients": (1, 2)}, "ns_coefficients", "be three .*", r"\(1, 2\)", ValueError),
        ({"ns_coefficients": 3.0}, "ns_coefficients", "be three numbers", "3.0", ValueError),
        ({"ns_coefficients": (1, 2, "c")}, "ns_coefficients", "be three .*", ".*", ValueError),
        ({"ns_steps": 100}, "ns_steps", "be at least 0 and below 100", "100", ValueError),
        ({"ns_steps": -1}, "ns_steps", "be at least 0 and below 100", "-1", ValueError),
        ({"ns_steps": 2.5}, "ns_steps", "be an int", "float 2.5", TypeError),
        ({"adjust_lr_fn": "arbitrary"}, "adjust_lr_fn", "be None or .*", "'arbitrary'", ValueError),
        ({"adjust_lr_fn": ["original"]}, "adjust_lr_fn", "be None or .*", ".*", ValueError),
        ({"max_norm": -1.0}, "max_norm", "be 0 or more", "-1.0", ValueError),
    ],
)
def test_wrong_hyperparameters(
    options: dict[str, Any], argument: str, must: str, got: str, kind: type[Exception]
) -> None:
    with refuses("Muon", argument, must, got, kind):
        fusedstep.Muon(make_params((3, 4)), **options)
    if "max_norm" in options:
        return
    params = make_params((3, 4), (4, 3))
    muon = fusedstep.Muon(params)
    set_grads(params)
    muon.param_groups[0].update(options)
    snapshot = Snapshot(params, muon)
    with refuses("Muon", f"param_groups[0]['{argument}']", must, got, kind):
        muon.step()
    snapshot.check()


@pytest.mark.parametrize("shape", [(), (3,)])
def test_what_is_no_matrix_must_be_adamws(shape: tuple[int, ...]) -> None:
    must = "have two or more dimensions, or be in a group with use_muon=False"
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with refuses("Muon", "param_groups[0]['params'][1]", must, got, ValueError):
        fusedstep.Muon(make_params((3, 4), shape))
    muon = fusedstep.Muon(make_params((3, 4)))
    with refuses("Muon", "param_groups[1]['params'][0]", must, got, ValueError):
        muon.add_param_group({"params": make_params(shape)})
    assert len(muon.param_groups) == 1


def test_a_named_parameter_is_called_by_its_name() -> None:
    named = [("weight", make_params((3, 4))[0]), ("bias", make_params((3,))[0])]
    must = "have two or more dimensions, or be in a group with use_muon=False"
    with refuses("Muon", "param_groups[0]['params']['bias']", must, r"\(3,\)", ValueError):
        fusedstep.Muon(named)


def test_a_group_that_becomes_muons_must_have_matrices() -> None:
    matrices, rest, muon = both()
    set_grads(matrices + rest)
    muon.step()
    muon.param_groups[1].update(use_muon=True)
    snapshot = Snapshot(matrices + rest, muon)
    must = "have two or more dimensions, or be in a group with use_muon=False"
    with refuses("Muon", "params[4]", must, r"\(16,\)", ValueError):
        muon.step()
    snapshot.check()


def test_use_muon_is_true_or_false() -> None:
    group = {"params": make_params((3, 4)), "use_muon": 2}
    with refuses("Muon", "param_groups[0]['use_muon']", "be True or False", "2", TypeError):
        fusedstep.Muon([group])


def test_wrong_hyperparameters_of_adamws_groups() -> None:
    for options, argument, must, got in (
        ({"lr": -1.0}, "lr", "be 0 or more", "-1.0"),
        ({"betas": (0.9, 1.0)}, "betas", "be at least 0 and below 1", "1.0"),
    ):
        where = f"param_groups[1]['{argument}']" + ("[1]" if argument == "betas" else "")
        with refuses("Muon", where, must, got, ValueError):
            both(adamw=options)


def test_sparse_gradients_are_refused() -> None:
    matrices, rest, muon = both()
    set_grads(matrices + rest)
    matrices[1].grad = matrices[1].grad.to_sparse()
    snapshot = Snapshot(matrices + rest, muon)
    with refuses("Muon", "params[1].grad", "be dense", "torch.sparse_coo", TypeError):
        muon.step()
    snapshot.check()
