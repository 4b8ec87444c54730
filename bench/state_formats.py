"""Which 8-bit format an optimizer's state should have, by the errors each makes on real gradients.

    python -m bench.state_formats                 about two minutes on two CPU cores

Trains the small model of bench.train_lm by torch.optim.AdamW and keeps the clipped gradients of
some blocks of 128 neighbouring elements. Then both moments are recomputed from them: once in
float32, and once for each format, stored in it after every step as an optimizer would, so that the
error of one step is in the input of the next. The chosen formats are those of
kernels/optim/quantize.h.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from bench.command import Parser, count, exit_status, seed
from bench.studies.language_model.corpus import Sampler, read_documents, tokenise, windows
from bench.studies.language_model.model import GPT
from bench.studies.language_model.training import (
    EPS,
    SIZES,
    TOKENS,
    Run,
    Update,
    torch_update,
)
from tests.reference import quantize
from tests.reference.random import random16

BLOCKS = 256  # of all the model's, evenly spaced

Store = Callable[[np.ndarray, np.ndarray], np.ndarray]  # values, random bits -> values as stored


def gradients(steps: int, seed: int, console: Console) -> np.ndarray:
    """Clipped gradients of a training, float32 [steps, BLOCKS * quantize.BLOCK]."""
    recipe = replace(SIZES["small"], steps=steps, seed=seed)
    corpus = tokenise(read_documents(None), TOKENS["small"], console.print)
    training = windows(corpus.training, recipe.shape.context, "training")
    sampler = Sampler(len(training), recipe.seed)
    torch.manual_seed(recipe.seed)
    kept: list[np.ndarray] = []

    def recorded_update(model: nn.Module) -> tuple[torch.optim.Optimizer, Update]:
        optimizer, update = torch_update(model)
        parameters = [p for p in model.parameters() if p.numel() % quantize.BLOCK == 0]
        count = sum(p.numel() for p in parameters) // quantize.BLOCK
        rows = torch.linspace(0, count - 1, BLOCKS).long()

        def update_and_record() -> torch.Tensor:
            norm = update()
            whole = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            kept.append(whole.view(count, quantize.BLOCK)[rows].flatten().numpy())
            return norm

        return optimizer, update_and_record

    run = Run(GPT(recipe.shape), recorded_update, recipe)
    tokens = 0
    for step in track(range(steps), "training", console=console):
        batch = sampler.take(recipe.batch_size(tokens))
        tokens += len(batch) * recipe.shape.context
        measured = run.step(*training.rows(batch).long(), recipe.rate(step))
    console.print(f"{steps} steps, last loss {measured.loss:.2f} nats.")
    return np.stack(kept)


def by_levels(levels: np.ndarray, stochastic: bool, zero: bool, block: int = 128) -> Store:
    """A format of ascending `levels` of magnitude up to 1, times each block's largest.

    Rounds to the nearest level, or up with the probability that keeps the mean. Without `zero`
    nothing but 0 becomes the first level.
    """

    def store(x: np.ndarray, random: np.ndarray) -> np.ndarray:
        rows = x.reshape(-1, block)
        scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), quantize.SMALLEST_SCALE)
        y = np.abs(rows) / scale
        upper = np.clip(np.searchsorted(levels, y), 1, len(levels) - 1)
        share = (y - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
        threshold = (random.reshape(y.shape) + 0.5) / 2**16 if stochastic else 0.5
        code = upper - (share <= threshold)
        code = np.where((y > 0) & (code == 0) & (not zero), 1, code)
        return (np.sign(rows) * levels[code] * scale).astype(np.float32).ravel()

    return store


def tapered_levels(octaves: int, first: int, last: int) -> np.ndarray:
    """Small floats with one bit of mantissa less after every `octaves`; 0 is among them for 2."""
    levels = quantize.tapered(octaves, first, last)
    levels -= levels[0] * (octaves == 2)
    return levels / levels[-1]


def power_levels(count: int, exponent: int) -> np.ndarray:
    return (np.arange(count + 1) / count) ** exponent


def softsign_levels(count: int) -> np.ndarray:
    z = np.arange(count + 1) / count
    return z / (2 - z)


def minifloat_levels(count: int, mantissa_bits: int) -> np.ndarray:
    """Codes 0 to `count` read as small floats with subnormals."""
    code, one = np.arange(count + 1), 2**mantissa_bits
    exponent = code // one
    value = np.where(exponent == 0, code * 2, (one + code % one) * 2.0**exponent)
    return value / value[-1]


def dynamic_levels(signed: bool) -> np.ndarray:
    """Dettmers, Lewis, Shleifer and Zettlemoyer 2022 (https://arxiv.org/abs/2110.02861): as many
    decimal exponents as there are bits, the more linear levels the larger the exponent."""
    levels = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i + (not signed)) + 1)
        levels += list((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6))
    return np.sort(levels)


def to_bfloat16(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    bits = quantize.round_to_bfloat16_stochastically(x, random)
    return quantize.join(bits, np.zeros_like(bits))


def to_signed(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    return quantize.decode_signed(*quantize.encode_signed(x, random))


def to_unsigned(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    return quantize.decode_unsigned(*quantize.encode_unsigned(x, random))


def exact(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class Format:
    """A row of a table: how one moment, or both, are stored."""

    name: str
    rounding: str
    first: Store = exact
    second: Store = exact


def first_formats() -> Iterator[Format]:
    shapes = {
        "linear": power_levels(127, 1),
        "softsign": softsign_levels(127),
        "square root": power_levels(127, 2),
        "tapered, 2 octaves": tapered_levels(2, 2, 129),
        "3 exponent, 4 mantissa bits": minifloat_levels(127, 4),
        "dynamic exponent": dynamic_levels(signed=True),
    }
    for name, levels in shapes.items():
        for rounding in ("nearest", "stochastic"):
            yield Format(name, rounding, by_levels(levels, rounding == "stochastic", zero=True))
    for name in ("softsign", "square root"):
        store = by_levels(shapes[name], stochastic=True, zero=True, block=256)
        yield Format(f"{name}, blocks of 256", "stochastic", store)
    yield Format("bfloat16", "stochastic", to_bfloat16)
    yield Format("CHOSEN: tapered, 2 octaves", "stochastic", to_signed)


def second_formats() -> Iterator[Format]:
    shapes = {
        "linear": power_levels(255, 1),
        "square root": power_levels(255, 2),
        "fourth root": power_levels(255, 4),
        "tapered, 2 octaves": tapered_levels(2, 2, 257),
        "tapered, 4 octaves": tapered_levels(4, 4, 256),
        "tapered, 8 octaves": tapered_levels(8, 8, 256),
        "4 exponent, 4 mantissa bits": minifloat_levels(255, 4),
        "dynamic exponent": dynamic_levels(signed=False),
    }
    for name in ("linear", "square root"):
        store = by_levels(shapes[name], stochastic=False, zero=True)
        yield Format(f"{name}, zero allowed", "nearest", second=store)
    for name, levels in shapes.items():
        for rounding in ("nearest", "stochastic"):
            store = by_levels(levels, rounding == "stochastic", zero=levels[0] > 0)
            yield Format(name, rounding, second=store)
    for name in ("square root", "fourth root"):
        store = by_levels(shapes[name], stochastic=True, zero=False, block=256)
        yield Format(f"{name}, blocks of 256", "stochastic", second=store)
    yield Format("bfloat16", "stochastic", second=to_bfloat16)
    yield Format("CHOSEN: tapered, 4 octaves", "stochastic", second=to_unsigned)
    yield Format("both bfloat16", "stochastic", to_bfloat16, to_bfloat16)
    yield Format("CHOSEN, both", "stochastic", to_signed, to_unsigned)


@dataclass
class Errors:
    """Relative to the update without rounding; means over the second half of the steps."""

    update: float  # root mean square of the update's error, over that of the update
    along: float  # how much longer the update is, along its own direction
    bias: float  # mean of sqrt(v as stored / v) - 1
    to_zero: float  # share of nonzero values of the rounded moment that are stored as zero
    largest: float  # magnitude in the updates, in units of the learning rate


def replay(grads: np.ndarray, betas: tuple[float, float], form: Format) -> Errors:
    """Adam's moments from recorded gradients, exactly and stored in `form` after every step."""
    beta1, beta2 = map(np.float32, betas)
    m, v, m_stored, v_stored = np.zeros((4, grads.shape[1]), np.float32)
    records = []
    for step, grad in enumerate(grads, start=1):
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad * grad
        m_new = beta1 * m_stored + (1 - beta1) * grad
        v_new = beta2 * v_stored + (1 - beta2) * grad * grad
        corrections = 1 - betas[0] ** step, np.sqrt(1 - betas[1] ** step)
        # What the step uses has its own gradient unrounded in it, as in the kernels.
        update = m / corrections[0] / (np.sqrt(v) / corrections[1] + EPS)
        changed = m_new / corrections[0] / (np.sqrt(v_new) / corrections[1] + EPS)
        m_stored = form.first(m_new, random16(0, 1, step, 0, grad.size))
        v_stored = form.second(v_new, random16(0, 2, step, 0, grad.size))
        if 2 * step > len(grads):
            power = (update**2).mean()
            lost = ((m_new != 0) & (m_stored == 0)) | ((v_new != 0) & (v_stored == 0))
            positive = v > 0
            bias = np.sqrt(v_new[positive] / v[positive]).mean() - 1
            error, along = ((changed - update) ** 2).mean(), (changed * update).mean() / power - 1
            records.append((error / power, along, bias, lost.mean(), np.abs(changed).max()))
    means = np.mean(records, axis=0)
    _, along, bias, to_zero, _ = means.tolist()
    return Errors(float(np.sqrt(means[0])), along, bias, to_zero, np.max(records, axis=0)[4])


def table(
    grads: np.ndarray,
    title: str,
    betas: tuple[float, float],
    forms: list[Format],
    console: Console,
) -> Table:
    """One row for each format."""
    largest = replay(grads, betas, Format("", "")).largest
    view = Table(title=f"{title}, β = {betas[0]}, {betas[1]}", caption_justify="left")
    view.caption = f"The largest update without rounding is {largest:.2f} learning rates."
    view.add_column("format")
    view.add_column("rounding")
    both = any(form.second is not exact for form in forms)
    for heading in ("error", "along", *(["√v bias"] if both else []), "to zero", "largest"):
        view.add_column(heading, justify="right")
    for form in track(forms, title, transient=True, console=console):
        e = replay(grads, betas, form)
        figures = [f"{e.update:.2%}", f"{e.along:+.2%}", f"{e.to_zero:.2%}", f"{e.largest:.2f}"]
        if both:
            figures.insert(2, f"{e.bias:+.2%}")
        style = "bold" if "CHOSEN" in form.name else None
        view.add_row(form.name, form.rounding, *figures, style=style)
    return view


def run(arguments: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=count, default=200, help="of training (default: 200)")
    parser.add_argument("--seed", type=seed, default=0, help="default: 0")
    given = parser.parse_args(arguments)
    console = Console(markup=False, highlight=False)
    grads = gradients(given.steps, given.seed, console)
    for betas in ((0.9, 0.95), (0.99, 0.95)):
        console.print(table(grads, "first moment", betas, list(first_formats()), console))
    for betas in ((0.9, 0.95), (0.9, 0.999)):
        console.print(table(grads, "second moment", betas, list(second_formats()), console))
    return 0


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 if the user should change something, 130 after Ctrl-C."""
    return exit_status("state_formats", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
