"""A stream of torch's random numbers of one's own, in a program where others draw too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Randomness:
    """Seeds torch's generators inside `with r.own():`, going on where the last such block ended.

    Two runs with the same seed that take turns draw the same numbers, whoever goes first.
    """

    def __init__(self, seed: int, device: torch.device):
        self._cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self._cuda):
            torch.manual_seed(seed)
            self._state = self._read()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw from this stream; the program's own generators are as before afterwards."""
        with torch.random.fork_rng(self._cuda):
            self._write(self._state)
            yield
            self._state = self._read()

    def state_dict(self) -> dict[str, Tensor]:
        """The generators' states, uint8 on the CPU."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state_dict` was called, on the same kind of device."""
        self._state = dict(state)

    def _read(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        for device in self._cuda:
            state["cuda"] = torch.cuda.get_rng_state(device)
        return state

    def _write(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        for device in self._cuda:
            torch.cuda.set_rng_state(state["cuda"], device)
