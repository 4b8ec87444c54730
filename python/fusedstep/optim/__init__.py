"""The optimizers, one file each; what they share is in base.py, plans.py and plan.py."""

from fusedstep.optim.adamw import AdamW

__all__ = ["AdamW"]
