"""The values of parameter groups: checked, by name, and in the order that the ops take.

They are read when a group has changed, which may be at every step, so the usual case comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.checks import refuse, require_beta, require_flag, require_number

Group = dict[str, Any]  # one of an optimizer's param_groups, or a constructor's arguments
Values = dict[str, float]  # a value for each field of a rule, by name
CONSTANTS = frozenset({float, int, bool, str, type(None), torch.dtype})


def label(index: int | None, key: str) -> str:
    """How a message names an entry of group `index`; None: the constructor's argument itself."""
    return key if index is None else f"param_groups[{index}]['{key}']"


def parameter_labels(group: Mapping[str, Any], where: str = "params", first: int = 0) -> list[str]:
    """How messages name each parameter of a group: by its name if it has one, else by index."""
    names = group.get("param_names") or range(first, first + len(group["params"]))
    return [f"{where}[{name!r}]" for name in names]


def numbers(
    function: str, group: Group, index: int | None, keys: Sequence[str]
) -> dict[str, float]:
    """The values of `keys` by name, each 0 or more."""
    values = {key: group[key] for key in keys}
    for value in values.values():
        if not (type(value) is float and value >= 0):
            return {k: require_number(function, label(index, k), group[k]) for k in keys}
    return values


def flag(function: str, group: Group, index: int | None, key: str) -> float:
    """The value of `key`: 1.0 if it is true, 0.0 if it is false."""
    value = group[key]
    if value is True:  # the usual cases
        return 1.0
    if value is False:
        return 0.0
    return float(require_flag(function, label(index, key), value))


def signed(function: str, group: Group, index: int | None, key: str) -> float:
    """The value of `key`, a number of either sign."""
    value = group[key]
    if isinstance(value, float) and not math.isnan(value):
        return value
    if isinstance(value, Real) and value < 0:
        return float(value)
    return require_number(function, label(index, key), value, "be a number")


def betas(function: str, group: Group, index: int | None) -> dict[str, float]:
    """The two values of "betas", beta1 and beta2, each at least 0 and below 1."""
    try:
        beta1, beta2 = group["betas"]
    except (TypeError, ValueError):
        refuse(function, label(index, "betas"), "be a pair of numbers", repr(group["betas"]))
    if type(beta1) is type(beta2) is float and 0 <= beta1 < 1 and 0 <= beta2 < 1:
        return {"beta1": beta1, "beta2": beta2}
    where = label(index, "betas")
    checked = [require_beta(function, f"{where}[{k}]", b) for k, b in enumerate((beta1, beta2))]
    return dict(zip(("beta1", "beta2"), checked, strict=True))


def entries_of(groups: Sequence[Group]) -> list[Any] | None:
    """All keys and values, one after the other; None if one may change and stay the same object.

    So a tensor as rate, or a list as betas, is read again at every step.
    """
    entries: list[Any] = []
    for group in groups:
        for key, value in group.items():
            if key not in ("params", "param_names") and not _is_constant(value):
                return None
            entries += (key, value)
    return entries


def _is_constant(value: Any) -> bool:
    return type(value) in CONSTANTS or (type(value) is tuple and all(map(_is_constant, value)))


def read_on_device(lr: Any) -> bool:
    """Whether the kernels read the rate on the GPU; a rate on the CPU is read with the others."""
    return isinstance(lr, Tensor) and lr.is_cuda


@cache
def rule_fields(rule: str) -> tuple[str, ...]:
    """The names of the values that a parameter group of a rule has, in the ops' order."""
    return tuple(_C.rule_fields(rule))


def in_order(rule: str, groups: Sequence[Mapping[str, float]]) -> list[float]:
    """The values of parameter groups, given by name, as the ops take them: group after group."""
    fields = rule_fields(rule)
    try:
        ordered = [values[name] for values in groups for name in fields]
    except KeyError as error:
        raise TypeError(f"a group of rule {rule} must have the field {error}") from None
    if sum(map(len, groups)) != len(ordered):
        unknown = sorted(set().union(*groups) - set(fields))
        raise TypeError(f"a group of rule {rule} must have its fields alone, got {unknown} as well")
    return ordered
