"""Batched pseudo-inverses and minimum-norm least squares, differentiable."""

from fusedstep.linalg._lstsq import lstsq
from fusedstep.linalg._pinv import PinvInfo, pinv

__all__ = ["PinvInfo", "lstsq", "pinv"]
