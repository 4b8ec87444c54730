"""What is left at the end: the table of results, and a JSON file of everything."""

import json
import math
import platform
import statistics
from pathlib import Path

import torch
from rich.table import Table

import fusedstep

from .comparison import NAMES, Comparison
from .files import write_whole


def results(comparison: Comparison) -> dict:
    """The figures of a finished comparison; losses in nats, times in milliseconds."""
    steps = comparison.steps
    difference, parameter = comparison.largest_difference()
    milliseconds = {
        name: 1e3 * statistics.median(step[name]["optimizer_seconds"] for step in steps)
        for name in NAMES
    }
    return {
        "validation_loss": {name: comparison.validations[-1][name] for name in NAMES},
        "uniform_guess_loss": math.log(comparison.recipe.shape.vocabulary),
        "largest_parameter_difference": difference,
        "largest_parameter_difference_in": parameter,
        "median_optimizer_ms": milliseconds,
        "optimizer_ratio": milliseconds["torch"] / milliseconds["fusedstep"],
        "median_tokens_per_second": {
            name: statistics.median(step["batch_tokens"] / step[name]["seconds"] for step in steps)
            for name in NAMES
        },
    }


def table(found: dict) -> Table:
    """`results` for people."""
    view = Table("", title="Same seed, same batches", title_style="bold")
    for heading in (*NAMES, ""):
        view.add_column(heading, justify="right")
    losses, speeds = found["validation_loss"], found["median_tokens_per_second"]
    milliseconds = found["median_optimizer_ms"]
    view.add_row(
        "validation loss, nats",
        *(f"{losses[name]:.4f}" for name in NAMES),
        f"uniform guess {found['uniform_guess_loss']:.2f}",
    )
    view.add_row(
        "clip + step, median ms",
        *(f"{milliseconds[name]:.3f}" for name in NAMES),
        f"ratio {found['optimizer_ratio']:.2f}",
    )
    view.add_row(
        "tokens/s, whole step, median",
        *(f"{speeds[name]:,.0f}" for name in NAMES),
        f"ratio {speeds['fusedstep'] / speeds['torch']:.2f}",
    )
    view.caption_justify, view.caption_style = "left", ""
    view.caption = (
        f"Largest difference between the parameters: {found['largest_parameter_difference']:.2e}, "
        f"in {found['largest_parameter_difference_in']}. The two ways "
        f"round the norm differently, and training magnifies every difference."
    )
    return view


def write_json(comparison: Comparison, found: dict, path: Path) -> None:
    """Settings, machine, results and every step, in one object."""
    content = {
        "results": found,
        "settings": comparison.recipe.flat(),
        "machine": machine(comparison.recipe.device),
        "parameters": sum(p.numel() for p in comparison.runs["torch"].model.parameters()),
        "validations": comparison.validations,
        "steps": comparison.steps,
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def machine(device: str) -> dict[str, str | int]:
    """What the times were taken on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "fusedstep": fusedstep.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
