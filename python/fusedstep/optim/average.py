"""The moving average of the parameters, which the step keeps: read, and swapped in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fusedstep.checks import refuse


class Averages(torch.optim.Optimizer):
    """What an optimizer with `ema_decay` offers."""

    def ema_parameters(self) -> list[Tensor]:
        """The averages in the order of the parameters, group after group.

        Each has its parameter's shape and is float32, or float64 of a float64 parameter; it is the
        tensor that the next step writes to. A parameter that never stepped stands for itself.

        Raises:
            ValueError: there is no `ema_decay`.
        """
        name = type(self).__name__
        if self._chosen["ema_decay"] is None:
            refuse(name, "ema_decay", "be set for there to be averages", None)
        params = (param for group in self.param_groups for param in group["params"])
        return [self.state.get(param, {}).get("ema", param) for param in params]

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Inside `with opt.swap_ema():` the parameters hold their averages, rounded to their dtype.

        Afterwards they are what they were, bit for bit, however the block ends; what is written to
        them inside is lost. Masters and remainders are not touched. It takes the memory of a second
        set of parameters. `step()` is refused inside.

        Raises:
            ValueError: there is no `ema_decay`.
            RuntimeError: the averages are swapped in already.
        """
        self._require_own_values()
        averages = self.ema_parameters()
        params = [param for group in self.param_groups for param in group["params"]]
        pairs = [(p, a) for p, a in zip(params, averages, strict=True) if a is not p]
        kept = [param.detach().clone() for param, _ in pairs]
        self._chosen["swapped"] = True
        try:
            with torch.no_grad():
                for param, average in pairs:
                    param.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (param, _), values in zip(pairs, kept, strict=True):
                    param.copy_(values)
            self._chosen["swapped"] = False

    def _require_own_values(self) -> None:
        if self._chosen["swapped"]:
            raise RuntimeError(
                f"{type(self).__name__}: parameters must hold their own values, got their averages "
                "(swap_ema is in effect)"
            )
