"""Modes in which parameters and state are kept, for the tests that ask something of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.quantize import split
from tests.support.optimizers import MUON, NAMESAKES, OPTIMIZERS, Kind

BFLOAT16 = {"dtype": torch.bfloat16}
# Options, and the parameters' dtype where it is not float32.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bfloat16 state": ({"state_dtype": torch.bfloat16}, {}),
    "int8 state": ({"state_dtype": "int8"}, {}),
    "average": ({"ema_decay": 0.9}, {}),
    "average of float64": ({"ema_decay": 0.9}, {"dtype": torch.float64}),
    "int8 state of float16": ({"state_dtype": "int8", "ema_decay": 0.5}, {"dtype": torch.float16}),
    "master": ({"master": "float32"}, BFLOAT16),
    "remainder": ({"master": "remainder"}, BFLOAT16),
    "correction": ({"master": "correction", "seed": 2**40 + 3}, BFLOAT16),
    "stochastic": ({"stochastic_rounding": True, "seed": 2**63 + 2**31 + 5}, BFLOAT16),
    "remainder, int8 state, average": (
        {"master": "remainder", "state_dtype": "int8", "ema_decay": 0.9},
        BFLOAT16,
    ),
    "correction, int8 state, average": (
        {"master": "correction", "state_dtype": "int8", "ema_decay": 0.9},
        BFLOAT16,
    ),
    "stochastic, bfloat16 state, average": (
        {"stochastic_rounding": True, "state_dtype": torch.bfloat16, "ema_decay": 0.99},
        BFLOAT16,
    ),
    "master, int8 state, average": (
        {"master": "float32", "state_dtype": "int8", "ema_decay": 0.0},
        BFLOAT16,
    ),
}
every_mode = pytest.mark.parametrize("mode", MODES)
# Modes in which, together, every option is used.
SOME = [name for name, (options, _) in MODES.items() if len(options) > 1 or "float64" in name]


def modes_of(kind: Kind) -> list[str]:
    """The modes to try with an optimizer: all of them with one, some with each other."""
    if kind is MUON:  # whose matrices do not round stochastically
        return [
            name for name, (options, _) in MODES.items() if "stochastic_rounding" not in options
        ]
    return list(MODES) if kind.name == "AdamW" else SOME


def _kinds_and_modes(kinds: Sequence[Kind], *first: str) -> pytest.MarkDecorator:
    cases = [(kind, mode) for kind in kinds for mode in (*first, *modes_of(kind))]
    ids = [f"{kind.name}, {mode}" for kind, mode in cases]
    return pytest.mark.parametrize(("kind", "mode"), cases, ids=ids)


every_kind_and_mode = _kinds_and_modes(OPTIMIZERS)
every_namesake_and_mode = _kinds_and_modes(NAMESAKES)
# "plain": in no mode.
every_class_and_mode = _kinds_and_modes([*OPTIMIZERS, MUON], "plain")


def forward_copy(master: str, exact: Tensor) -> Tensor:
    """The bfloat16 parameter of a float32 one: torch's rounding, or ties away from zero."""
    if master == "float32":
        return exact.detach().bfloat16()
    nearest, _ = split(exact.detach().flatten().numpy())
    return torch.from_numpy(nearest).view(torch.bfloat16).view(exact.shape)
