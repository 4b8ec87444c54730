"""DeepSpeed's CPU optimizers, which it compiles at the first use, with torch's clip before them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.lion import DeepSpeedCPULion

from bench.case import Side, Work
from bench.peers.steps import ADAM, Classes, made, optimizer_side
from bench.record import ROOT

BUILT = ROOT / "build" / "deepspeed" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
CLASSES: Classes = {
    "adamw": (DeepSpeedCPUAdam, ADAM),
    "adam": (partial(DeepSpeedCPUAdam, adamw_mode=False), ADAM),
    "adagrad": (DeepSpeedCPUAdagrad, ("lr", "eps", "weight_decay")),
    "lion": (DeepSpeedCPULion, ("lr", "betas", "weight_decay")),
}


def sides(work: Work, device: torch.device) -> Iterator[Side]:
    """Nothing but float32 on a CPU."""
    make = made(CLASSES, work)
    if make and work.is_float32 and device.type == "cpu":
        make_compilable()
        name = make.func.__name__.removeprefix("DeepSpeed")
        yield optimizer_side(f"DeepSpeed {name}", work, device, make)


def make_compilable() -> None:
    """It compiles with ninja from PATH; before torch 2.14 it waits for a killed one's lock."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(BUILT)
    here = str(Path(sys.executable).parent)
    if here not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = here + os.pathsep + os.environ["PATH"]
    for lock in BUILT.rglob("lock"):  # of an earlier run: nobody else compiles here
        lock.unlink()
