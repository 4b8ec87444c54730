"""The recipe: everything that decides a run's numbers, with the sizes to choose from.

The constants are GPT-3's (Brown et al. 2020, appendix B).
"""

from dataclasses import asdict, dataclass

from fusedstep import schedules

from .gpt import Shape

BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0
FINAL_RATE = 0.1  # of the peak
WARMUP = 0.1  # of the steps
RAMP = 0.1  # of the tokens


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; batches count sequences of `shape.context` tokens."""

    shape: Shape
    steps: int
    first_batch: int
    batch: int
    micro_batch: int
    peak_rate: float
    validation_windows: int
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return schedules.warmup_cosine(
            step,
            max_lr=self.peak_rate,
            min_lr=FINAL_RATE * self.peak_rate,
            warmup_steps=max(1, round(WARMUP * self.steps)),
            max_steps=self.steps,
        )

    def batch_size(self, tokens: int) -> int:
        """Sequences in the batch that follows after `tokens` tokens."""
        return schedules.batch_size_ramp(
            tokens,
            start=min(self.first_batch, self.batch),
            end=self.batch,
            ramp_tokens=round(RAMP * self.steps * self.batch * self.shape.context),
        )

    def flat(self) -> dict[str, int | float | str]:
        """Every setting by its name, the shape's among them."""
        settings = asdict(self)
        return {**settings.pop("shape"), **settings}


SIZES = {
    # Seconds: to try the machinery out.
    "tiny": Recipe(
        Shape(vocabulary=512, context=32, layers=2, heads=2, width=32),
        steps=40,
        first_batch=2,
        batch=6,
        micro_batch=4,
        peak_rate=1e-2,
        validation_windows=16,
    ),
    # About two minutes for both runs on two CPU cores.
    "small": Recipe(
        Shape(vocabulary=4096, context=128, layers=4, heads=4, width=128),
        steps=500,
        first_batch=4,
        batch=12,
        micro_batch=8,
        peak_rate=1.5e-3,
        validation_windows=64,
    ),
    # GPT-2 124M, for a GPU. The tokenizer is trained to GPT-2's 50257 tokens; the embedding has
    # 50304 rows, a multiple of 128, which keeps the largest matrix product on aligned tiles.
    "gpt2": Recipe(
        Shape(vocabulary=50304, context=1024, layers=12, heads=12, width=768),
        steps=300,
        first_batch=16,
        batch=64,
        micro_batch=16,
        peak_rate=6e-4,
        validation_windows=64,
    ),
}
TOKENS = {"tiny": 512, "small": 4096, "gpt2": 50257}
