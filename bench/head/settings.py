"""Everything that decides the study's numbers."""

from dataclasses import dataclass
from pathlib import Path

SCALE = 1000.0  # of the one-hot targets, as in "Language Mixers III: Optimization"
HORIZONS = (1, 10, 100, 1000)  # AdamW's steps that the table shows


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of time; windows are of `context` tokens each."""

    vocabulary: int = 4096
    context: int = 128
    width: int = 128
    steps: int = 1000  # of AdamW
    batch: int = 8  # windows
    rate: float = 1e-2  # AdamW's, at its peak
    tokens: int | None = None  # of training text in the least squares; None: all
    held_out: int = 64  # windows
    chunk: int = 16  # windows whose hidden states, and logits, are held at a time
    newton_tokens: int = 512  # in whole windows, at least one
    newton_seconds: float = 8.0  # for each variant, begun iterations ended
    newton_iterations: int = 100
    seed: int = 0

    @property
    def trivial_mse(self) -> float:
        """The mean squared error of all weights 0."""
        return SCALE**2 / self.vocabulary


@dataclass(frozen=True)
class GPTSettings:
    """For solving again the last layer of a model that train_lm.py trained."""

    checkpoint: Path = Path("runs/train_lm/checkpoint.pt")
    tokens: int = 65536  # of training text, in whole windows
    steps: int = 10  # of newton_cg, at most
    products: int = 10  # of the Hessian, in each
    enough: float = 1e-3  # a step that lowers the loss by less, relatively, is the last
    held_out: int = 128  # windows
    chunk: int = 16  # windows whose hidden states, and logits, are held at a time
    seed: int = 0
