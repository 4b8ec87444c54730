"""Which sequences come next: a new random order in every epoch, each sequence once in it."""

import numpy as np
import torch
from torch import Tensor


class Sampler:
    """Draws from `range(count)` without replacement within an epoch.

    The order of an epoch is a function of (seed, epoch) alone, so two integers are the whole state
    and a resumed run draws what the uninterrupted one would have drawn.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self.epoch = self.position = 0
        self._order = self._shuffled()

    def take(self, size: int) -> Tensor:
        """The next `size` indices, 1 or more, int64; goes on in the next epoch where one ends."""
        drawn = []
        while size > 0:
            if self.position == self.count:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            part = self._order[self.position : self.position + size]
            self.position += len(part)
            size -= len(part)
            drawn.append(part)
        return torch.cat(drawn)

    def state_dict(self) -> dict[str, int]:
        """Epoch and position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state_dict` was called; count and seed must be those of that sampler."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> Tensor:
        generator = np.random.default_rng([self.seed, self.epoch])
        return torch.from_numpy(generator.permutation(self.count))
