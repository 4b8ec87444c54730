"""Times loss and gradient of rows of logits against plain torch, in turns, with a floor.

    python -m bench.softmax                    every case on every device, about a minute
    python -m bench.softmax --case row --seconds 5 --no-record

Both sides give each row's loss and |p - e_y|², and leave p - e_y behind (ours divided by 1 - p_y);
"losses" computes losses alone. "row" is what a sequential method needs for one token. The floor is
the time to read the logits once, and to write them once where they change, at the rate of torch's
copy in the same process. Each run is appended to bench/results/softmax.csv.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.measure import Benchmark, compare, copy_rate, run, timing_columns
from bench.record import Row
from fusedstep.lm_head.softmax import directions_, token_losses


@dataclass(frozen=True)
class Case:
    """Normally distributed float32 logits."""

    name: str
    rows: int
    vocabulary: int
    gradient: bool = True

    def problem(self, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.rows, self.vocabulary, generator=generator)
        tokens = torch.randint(self.vocabulary, (self.rows,), generator=generator)
        return logits.to(device), tokens.to(device)

    def ours(self, logits: Tensor, tokens: Tensor) -> None:
        """In place: later calls read what earlier ones wrote, which takes as long."""
        (directions_ if self.gradient else token_losses)(logits, tokens)

    def theirs(self, logits: Tensor, tokens: Tensor) -> None:
        cross_entropy(logits, tokens, reduction="none")
        if self.gradient:
            delta = logits.softmax(1)
            delta.scatter_add_(1, tokens[:, None], delta.new_full((self.rows, 1), -1.0))
            torch.linalg.vector_norm(delta, dim=1)

    @property
    def bytes(self) -> int:
        return 4 * self.rows * self.vocabulary * (2 if self.gradient else 1)


CASES = (
    Case("chunk", 256, 32000),
    Case("row", 1, 50257),
    Case("losses", 256, 32000, gradient=False),
)


def measure(case: Case, device: torch.device, seconds: float, rate: float) -> Row:
    ours, theirs = case.problem(device), case.problem(device)
    medians = compare(lambda: case.ours(*ours), lambda: case.theirs(*theirs), device, seconds)
    return {
        "case": case.name,
        "rows": case.rows,
        "vocabulary": case.vocabulary,
        **timing_columns(medians, target=None, floor_ms=1e3 * case.bytes / rate),
    }


def main() -> None:
    columns = ["case", "device", "rows", "vocabulary", "torch_ms", "our_ms", "ratio", "floor_ms"]
    run(Benchmark("softmax", str(__doc__), CASES, copy_rate, measure, columns))


if __name__ == "__main__":
    main()
