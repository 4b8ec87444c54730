"""Whose step an optimizer takes, fusedstep's or torch's own, by `fused` and `foreach`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusedstep.checks import refuse, require_flag

# As the groups of an optimizer with fusedstep's step have them, where they have them.
OURS = {"fused": True, "foreach": None, "differentiable": False}


def is_native(function: str, arguments: Mapping[str, Any], groups: Sequence[Any] = ()) -> bool:
    """Whether the step is fusedstep's; refuses groups that differ from each other or `arguments`.

    Args:
        function: The optimizer's name in messages.
        arguments: The constructor's arguments "fused" and "foreach". None: the groups decide.
        groups: The constructor's parameter groups; parameters that are no groups decide nothing.
    """
    whole = _choice(function, "{}", arguments)
    default = True if whole is None else whole
    choices: list[bool] = []
    for g, group in enumerate(groups):
        where = f"param_groups[{g}]['{{}}']"
        choice = _choice_of_group(function, where, group) if isinstance(group, dict) else None
        choices.append(default if choice is None else choice)
    native = choices[0] if whole is None and choices else default
    for g, choice in enumerate(choices):
        if choice is not native:
            alike = "param_groups[0]" if whole is None else "the whole optimizer"
            _refuse(function, f"param_groups[{g}]", groups[g], native, alike)
    return native


def require_native(function: str, where: str, group: Mapping[str, Any], native: bool) -> None:
    """Refuses a group that asks for another step than its optimizer's; `native`: fusedstep's."""
    if _choice_of_group(function, where + "['{}']", group) not in (None, native):
        _refuse(function, where, group, native, "the whole optimizer")
    if native and group.get("differentiable"):
        refuse(function, where + "['differentiable']", "be False without fused=False", True)


def require_flags(function: str, entries: Mapping[str, Any], where: str = "{}") -> None:
    """Refuses entries that choose an implementation and are neither True nor False."""
    for key in ("capturable", "differentiable"):
        if key in entries:
            require_flag(function, where.format(key), entries[key])


def mark_native(group: dict[str, Any]) -> None:
    """Gives a group of an optimizer with fusedstep's step the entries that say so."""
    for key, value in OURS.items():
        if key in group and bool(group[key]) != bool(value):
            group[key] = value


def _choice(function: str, where: str, entries: Mapping[str, Any]) -> bool | None:
    """Whether `entries` ask for fusedstep's step, or for torch's own; None: for neither."""
    fused, foreach = (
        None
        if entries.get(key) is None
        else require_flag(function, where.format(key), entries[key], "be True, False or None")
        for key in ("fused", "foreach")
    )
    return (False if foreach else None) if fused is None else fused


def _choice_of_group(function: str, where: str, group: Mapping[str, Any]) -> bool | None:
    """The same; torch's constructor refuses both of its own arguments, not a group's."""
    choice = _choice(function, where, group)
    if choice and group.get("foreach"):
        refuse(function, where.format("foreach"), "not be True with fused=True", True)
    return choice


def _refuse(function: str, where: str, group: Mapping[str, Any], native: bool, alike: str) -> None:
    whose = "torch's own step (fused=False or foreach=True)"
    if native:
        whose = "fusedstep's step (not fused=False or foreach=True)"
    got = ", ".join(f"{key}={group.get(key)!r}" for key in ("fused", "foreach"))
    refuse(function, where, f"select {whose}, as {alike} does", got)
