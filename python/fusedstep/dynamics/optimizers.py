"""Which optimizers have a known preconditioner and stability threshold, and their groups."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from fusedstep.checks import refuse, require_rate
from fusedstep.optim.hyperparameters import Group, label

# AdamW is among torch's Adam's subclasses; fusedstep's classes are subclasses of torch's.
RULES = {
    "Adam": torch.optim.Adam,
    "RMSprop": torch.optim.RMSprop,
    "SGD": torch.optim.SGD,
    "Adagrad": torch.optim.Adagrad,
}


def rule_of(function: str, optimizer: Any) -> str:
    """The key in `RULES` of an optimizer of fusedstep or torch."""
    rule = next((name for name, kind in RULES.items() if isinstance(optimizer, kind)), None)
    if rule is None:
        must = "be Adam, AdamW, RMSprop, SGD or Adagrad, of fusedstep or torch"
        refuse(function, "optimizer", must, type(optimizer).__name__, TypeError)
    for g, group in enumerate(optimizer.param_groups):
        if group["maximize"]:
            refuse(function, label(g, "maximize"), "be False", True)
    return rule


def rate_of(function: str, group: Group, index: int) -> float:
    """The learning rate of a group, 0 or more; a tensor's value."""
    return require_rate(function, label(index, "lr"), group["lr"])


def trainable(optimizer: Optimizer) -> list[torch.Tensor]:
    """The parameters that require gradients, group after group."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
