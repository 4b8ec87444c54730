"""The ways to store parameters and state that the GPU's scripts prove and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fusedstep import _C

CODED = 1 + 4 / _C.BLOCK  # bytes of an 8-bit number with its share of the block's scale


@dataclass(frozen=True)
class Form:
    """Options of an optimizer, for parameters and gradients of one dtype."""

    name: str
    dtype: torch.dtype
    options: Mapping[str, Any]
    param_bytes: float  # read and written for each parameter: itself and its master
    state_bytes: float  # of each number of state

    def bytes(self, states: int = 2) -> float:
        """What clip and step cannot avoid moving for each parameter: the gradient read twice, the
        parameter and so many states read and written. 32 for AdamW in float32."""
        return 2 * self.dtype.itemsize + self.param_bytes + 2 * states * self.state_bytes


FLOAT32, BF16 = torch.float32, torch.bfloat16
FORMS = (
    Form("float32, bfloat16 state", FLOAT32, {"state_dtype": BF16}, 8, 2),
    Form("float32, int8 state", FLOAT32, {"state_dtype": "int8"}, 8, CODED),
    Form("bfloat16, float32 state", BF16, {}, 4, 4),
    Form("bfloat16 alone", BF16, {"state_dtype": BF16, "stochastic_rounding": True}, 4, 2),
    # Of the parameter and its float32 master only the master is read.
    Form("bfloat16, float32 master", BF16, {"master": "float32"}, 10, 4),
    Form("bfloat16, remainder", BF16, {"master": "remainder"}, 8, 4),
    Form(
        "bfloat16, remainder, int8 state",
        BF16,
        {"master": "remainder", "state_dtype": "int8"},
        8,
        CODED,
    ),
    Form(
        "bfloat16, correction, int8 state",
        BF16,
        {"master": "correction", "state_dtype": "int8"},
        6,
        CODED,
    ),
)
ROUNDED = FORMS[3]  # stochastically, parameters and state
SMALLEST = FORMS[-1]
