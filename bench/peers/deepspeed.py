"""DeepSpeed's CPU optimizers, which it compiles at the first use, with torch's clip before them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.lion import DeepSpeedCPULion
from torch.optim import Optimizer

from bench.case import Side, Work
from bench.peers.steps import arguments, optimizer_side
from bench.record import ROOT

BUILT = ROOT / "build" / "deepspeed" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
ADAM = ("lr", "betas", "eps", "weight_decay")
RULES: dict[str, tuple[str, Callable[..., Optimizer], tuple[str, ...]]] = {
    "adamw": ("DeepSpeed CPUAdam", DeepSpeedCPUAdam, ADAM),
    "adam": ("DeepSpeed CPUAdam", partial(DeepSpeedCPUAdam, adamw_mode=False), ADAM),
    "adagrad": ("DeepSpeed CPUAdagrad", DeepSpeedCPUAdagrad, ("lr", "eps", "weight_decay")),
    "lion": ("DeepSpeed CPULion", DeepSpeedCPULion, ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32 on a CPU."""
    if work.rule not in RULES or device.type != "cpu":
        return
    name, make, names = RULES[work.rule]
    options = arguments(work, *names)
    if options is not None and (work.mode, work.dtype) == ("float32", torch.float32):
        make_compilable()
        yield optimizer_side(name, work, device, partial(make, **options))


def make_compilable() -> None:
    """It compiles with ninja from PATH; before torch 2.14 it waits for a killed one's lock."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(BUILT)
    here = str(Path(sys.executable).parent)
    if here not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = here + os.pathsep + os.environ["PATH"]
    for lock in BUILT.rglob("lock"):  # of an earlier run: nobody else compiles here
        lock.unlink()
