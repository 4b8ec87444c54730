"""The values of parameter groups: what is refused, when, and that nothing was changed before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import fusedstep
from fusedstep.optim.hyperparameters import in_order, rule_fields
from fusedstep.optim.optimizer import FusedOptimizer
from tests.support.optimizers import Kind, every_kind
from tests.support.refusals import Snapshot, refuses
from tests.support.shadow import Shadow
from tests.support.tensors import assert_same_bits, make_params, set_grads

nan = math.nan
ADAM = ("lr", "weight_decay", "eps")
# The hyperparameters that are numbers, 0 or more. Adagrad's initial value is the constructor's.
NUMBERS = {
    "Adam": ADAM,
    "AdamW": ADAM,
    "RMSprop": ("lr", "weight_decay", "eps", "alpha", "momentum"),
    "SGD": ("lr", "weight_decay", "momentum"),
    "Adagrad": ("lr", "weight_decay", "eps", "lr_decay"),
    "Lion": ("lr", "weight_decay"),
    "Muon": ("lr", "weight_decay", "eps", "momentum"),
}
every_number = pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in NUMBERS.items() for option in options]
)
BAD_NUMBERS: list[tuple[Any, str, str, type[Exception]]] = [
    (-1e-3, "be 0 or more", "-0.001", ValueError),
    (nan, "be 0 or more", "nan", ValueError),
    ("0.1", "be a number", "str", TypeError),
    (None, "be a number", "NoneType", TypeError),
    (True, "be a number", "bool", TypeError),
    (torch.tensor([0.1, 0.2]), "have one element", r"\(2,\)", ValueError),
]


@every_number
def test_the_constructor_refuses_what_is_not_a_number_of_0_or_more(name: str, option: str) -> None:
    for value, must, got, error in BAD_NUMBERS:
        with refuses(name, option, must, got, error):
            getattr(fusedstep, name)(make_params((3, 4)), **{option: value})


def test_adagrad_refuses_an_initial_value_that_is_no_number() -> None:
    for value, must, got, error in BAD_NUMBERS:
        with refuses("Adagrad", "initial_accumulator_value", must, got, error):
            fusedstep.Adagrad(make_params((3,)), initial_accumulator_value=value)


@every_number
def test_what_a_group_is_given_between_steps_is_refused(name: str, option: str) -> None:
    params = make_params((3, 4), (4, 3))
    optimizer = getattr(fusedstep, name)([{"params": [p]} for p in params])
    where = f"param_groups[1]['{option}']"
    for value, must, got, error in BAD_NUMBERS:
        good = optimizer.param_groups[1][option]
        set_grads(params)
        optimizer.param_groups[1][option] = value
        snapshot = Snapshot(params, optimizer)
        with refuses(name, where, must, got, error):
            optimizer.step()
        snapshot.check()
        with refuses(name, where.replace("1", "2"), must, got, error):
            optimizer.add_param_group({"params": make_params((5, 2)), option: value})
        assert len(optimizer.param_groups) == 2
        optimizer.param_groups[1][option] = good
        optimizer.step()  # the first of these is the first of all
    counts = {float(state["step"]) for state in optimizer.state.values() if "step" in state}
    assert counts <= {float(len(BAD_NUMBERS))}


BETA = "be at least 0 and below 1"


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lion"])
def test_betas(name: str) -> None:
    kind = getattr(fusedstep, name)
    optimizer = kind([{"params": make_params((3,))}])
    for betas, argument, must, got, error in (
        ((1.0, 0.9), "betas[0]", BETA, "1.0", ValueError),
        ((-0.1, 0.9), "betas[0]", BETA, "-0.1", ValueError),
        ((0.9, 1.5), "betas[1]", BETA, "1.5", ValueError),
        ((0.9, nan), "betas[1]", BETA, "nan", ValueError),
        ((0.9, "a"), "betas[1]", "be a number", "str", TypeError),
        ((0.9,), "betas", "be a pair of numbers", r"\(0.9,\)", ValueError),
        ((0.9, 0.99, 0.999), "betas", "be a pair of numbers", ".*", ValueError),
        (0.9, "betas", "be a pair of numbers", "0.9", ValueError),
        (None, "betas", "be a pair of numbers", "None", ValueError),
        ("ab", "betas[0]", "be a number", "str", TypeError),
    ):
        with refuses(name, argument, must, got, error):
            kind(make_params((3,)), betas=betas)
        where = argument.replace("betas", "param_groups[1]['betas']")
        with refuses(name, where, must, got, error):
            optimizer.add_param_group({"params": make_params((3,)), "betas": betas})
        assert len(optimizer.param_groups) == 1


def test_dampening_may_be_negative_but_is_a_number() -> None:
    for value, must, got, error in (
        (nan, "be a number", "nan", ValueError),
        ("a", "be a number", "str", TypeError),
    ):
        with refuses("SGD", "dampening", must, got, error):
            fusedstep.SGD(make_params((3,)), dampening=value)


@pytest.mark.parametrize("more", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_momentum_and_no_dampening(more: dict[str, float]) -> None:
    with refuses("SGD", "nesterov", "be False without .*", "True", ValueError):
        fusedstep.SGD(make_params((3,)), nesterov=True, **more)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"])
def test_centered_needs_state_that_is_not_rounded(state_dtype: torch.dtype | str) -> None:
    params = make_params((3,), (4,))
    must = f"be False when state_dtype={state_dtype!r} is set"
    with refuses("RMSprop", "centered", must, "True", ValueError):
        fusedstep.RMSprop(params, centered=True, state_dtype=state_dtype)
    optimizer = fusedstep.RMSprop(params[:1], state_dtype=state_dtype)
    with refuses("RMSprop", "param_groups[1]['centered']", must, "True", ValueError):
        optimizer.add_param_group({"params": params[1:], "centered": True})
    optimizer.add_param_group({"params": params[1:], "centered": True, "state_dtype": None})


@every_kind
def test_numbers_of_numpy_are_numbers(kind: Kind) -> None:
    params = make_params((3,))
    optimizer = kind.ours(params, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: np.float32(0.5))
    set_grads(params)
    before = params[0].detach().clone()
    optimizer.step()
    schedule.step()
    optimizer.step()
    assert isinstance(optimizer.param_groups[0]["lr"], np.floating)
    assert not torch.equal(params[0], before)


# --- true or false -------------------------------------------------------------------------------

BOOLEANS: dict[str, list[str]] = {
    "AdamW": ["amsgrad", "maximize", "capturable"],
    "Adam": ["amsgrad", "maximize", "capturable", "decoupled_weight_decay"],
    "RMSprop": ["centered", "maximize", "capturable"],
    "SGD": ["nesterov", "maximize", "capturable"],
    "Adagrad": ["maximize", "capturable"],
    "Lion": ["maximize", "capturable"],
    "Muon": ["nesterov", "maximize"],
}
every_boolean = pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in BOOLEANS.items() for option in options]
)


@every_boolean
def test_what_is_neither_true_nor_false_is_refused(name: str, option: str) -> None:
    kind = getattr(fusedstep, name)
    optimizer = kind(make_params((3, 4)))
    for value, got in (("x", "'x'"), (3, "3"), (None, "None"), ([], r"\[\]")):
        with refuses(name, option, "be True or False", got, TypeError):
            kind(make_params((3, 4)), **{option: value})
        where = f"param_groups[1]['{option}']"
        with refuses(name, where, "be True or False", got, TypeError):
            optimizer.add_param_group({"params": make_params((3, 4)), option: value})
        assert len(optimizer.param_groups) == 1
        state_dict = optimizer.state_dict()
        state_dict["param_groups"][0][option] = value
        with refuses(name, where.replace("1", "0"), "be True or False", got, TypeError):
            optimizer.load_state_dict(state_dict)


@every_boolean
def test_what_equals_true_or_false_is_accepted(name: str, option: str) -> None:
    more = {"momentum": 0.9} if option == "nesterov" else {}
    for value in (True, False):
        runs = []
        for like in (bool, int, np.bool_):
            params = make_params((3, 4))
            optimizer = getattr(fusedstep, name)(params, **{option: like(value)}, **more)
            for step in range(2):
                set_grads(params, seed=step)
                optimizer.step()
            runs.append(params[0])
        assert_same_bits(runs[1], runs[0])
        assert_same_bits(runs[2], runs[0])


# --- by name, in the order of the rule's fields ---------------------------------------------------


@pytest.mark.parametrize("name", NUMBERS)
def test_every_field_of_the_rule_has_a_value_of_its_name(name: str) -> None:
    optimizer: FusedOptimizer = getattr(fusedstep, name)(make_params((3, 4)))
    values = optimizer._values(optimizer.param_groups[0], 0)
    assert values.keys() == set(rule_fields(optimizer._rule))
    assert in_order(optimizer._rule, [values]) == [values[f] for f in rule_fields(optimizer._rule)]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda values: values.pop("dampening"), "'dampening'"),
        (lambda values: values.update(dampenning=values.pop("dampening")), "'dampening'"),
        (lambda values: values.update(power=1.0), r"\['power'\]"),
    ],
    ids=["missing", "misspelt", "unknown"],
)
def test_a_rules_values_must_be_its_fields(
    change: Any, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_sgd = fusedstep.SGD._rule_values

    def rule_values(self: fusedstep.SGD, group: dict[str, Any], index: int | None) -> Any:
        values = dict(of_sgd(self, group, index))
        change(values)
        return values

    params = make_params((3,))
    optimizer = fusedstep.SGD(params)
    set_grads(params)
    monkeypatch.setattr(fusedstep.SGD, "_rule_values", rule_values)
    before = Snapshot(params)
    with pytest.raises(TypeError, match=wrong):
        optimizer.step()
    before.check()


# --- what is kept between steps -------------------------------------------------------------------


def test_values_that_change_in_place_are_read_again() -> None:
    """The same objects in the same groups, so nothing but their contents tells."""
    lr, betas = torch.tensor(0.1), [0.9, 0.99]
    params = make_params((20,))
    shadow = Shadow(fusedstep.AdamW(params, lr=lr, betas=betas, max_norm=1.0))
    for step in range(4):
        set_grads(params, seed=step)
        lr.fill_(0.1 / (step + 1))
        betas[0] = 0.9 - 0.1 * step
        shadow.step()


@pytest.mark.parametrize("change", ["value", "option", "key", "checkpoint"])
def test_what_changes_between_steps_takes_effect_at_the_next(change: str) -> None:
    params = make_params((20,), (3, 4))
    optimizer = fusedstep.AdamW([{"params": [p]} for p in params], lr=0.1, max_norm=10.0)
    shadow = Shadow(optimizer)
    for step in range(4):
        set_grads(params, seed=step)
        group = optimizer.param_groups[1]
        if step == 2 and change == "value":
            group["eps"] = 1e-3
        if step == 2 and change == "option":
            optimizer.max_norm = 0.1
        if step == 2 and change == "key":  # the same values in the same order
            optimizer.param_groups[1] = {
                {"weight_decay": "eps", "eps": "weight_decay"}.get(key, key): value
                for key, value in group.items()
            }
        if step == 2 and change == "checkpoint":
            saved = optimizer.state_dict()
            saved["param_groups"][1]["lr"] = 0.01
            optimizer.load_state_dict(saved)
        shadow.step()


def test_groups_may_be_replaced_by_a_tuple() -> None:
    """It is no list, which is compared at little cost: every step reads it anew."""
    sides = [make_params((5,)) for _ in range(2)]
    ours, expected = (fusedstep.AdamW(params, lr=0.1) for params in sides)
    for step in range(3):
        for optimizer, params in zip((ours, expected), sides, strict=True):
            set_grads(params, seed=step)
            optimizer.step()
        ours.param_groups = tuple(ours.param_groups)
    for a, b in zip(*sides, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("bad", [-0.1, True])
def test_a_value_that_equals_the_last_one_is_checked_too(bad: Any) -> None:
    params = make_params((20,))
    optimizer = fusedstep.AdamW(params, lr=1.0)
    set_grads(params)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = bad
    for _ in range(2):
        before = params[0].detach().clone()
        with pytest.raises(
            (ValueError, TypeError), match=r"^AdamW: param_groups\[0\]\['lr'\] must"
        ):
            optimizer.step()
        assert torch.equal(params[0], before)
