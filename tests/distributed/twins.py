"""An optimizer in one process and its twin over the ranks, which must agree in every bit."""

from __future__ import annotations

from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from fusedstep.optim.state import MOMENT
from tests.distributed.side_by_side import whole
from tests.support.optimizers import params_of
from tests.support.tensors import assert_same_bits


class Twins:
    """Both optimizers, of the same parameters in the same order."""

    def __init__(self, reference: Optimizer, optimizer: Optimizer) -> None:
        self.reference, self.optimizer = reference, optimizer
        self.steps = 0

    def update(self) -> None:
        """One step of both with the gradients that they have, then the comparison."""
        self.reference.step()
        self.optimizer.step()
        self.steps += 1
        self.check()

    def check(self) -> None:
        """Parameters and state; of DTensors, where state is."""
        pairs = zip(params_of(self.optimizer), params_of(self.reference), strict=True)
        for i, (param, one) in enumerate(pairs):
            where = getattr(param, "placements", "a plain tensor")
            what = f"params[{i}] {tuple(param.shape)} {where} after step {self.steps}"
            assert_same_bits(whole(param), one.detach(), what)
            states, expected = self.optimizer.state[param], self.reference.state[one]
            assert states.keys() == expected.keys(), what
            for name, state in states.items():
                assert_same_bits(whole(state), expected[name], f"{name} of {what}")
                if isinstance(param, DTensor) and name not in ("step", MOMENT):
                    assert state.placements == param.placements
