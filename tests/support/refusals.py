"""How a refusal is worded, and that it comes before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tensors import assert_same_bits

WORDING = r"^{function}: {argument} must {must}, got {got}$"


def refuses(function: str, argument: str, must: str, got: str, kind: type[Exception]) -> Any:
    """pytest.raises for a refusal in the one wording; `must` and `got` are regular expressions."""
    for sign in "[]()":
        argument = argument.replace(sign, f"\\{sign}")
    text = WORDING.format(function=function, argument=argument, must=must, got=got)
    return pytest.raises(kind, match=text)


class Snapshot:
    """All that a refused call must leave as it was."""

    def __init__(self, params: list[Tensor], optimizer: torch.optim.Optimizer | None = None):
        self.params, self.optimizer = params, optimizer
        self.before = self._take()

    def _take(self) -> dict[str, Tensor | int]:
        seen: dict[str, Tensor | int] = {}
        for i, param in enumerate(self.params):
            tensors = {"param": param, "grad": param.grad}
            if self.optimizer is not None:
                state = self.optimizer.state.get(param, {})
                tensors |= state
                seen[f"{i} entries"] = len(state)
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    seen[f"{i} {name}"] = tensor.detach().clone()
                    seen[f"{i} {name}'s version"] = tensor._version
        return seen

    def check(self) -> None:
        after = self._take()
        assert after.keys() == self.before.keys()
        for name, value in after.items():
            if isinstance(value, Tensor):
                assert_same_bits(value, self.before[name], name)
            else:
                assert value == self.before[name], name
