"""Batched pseudo-inverses and minimum-norm least squares, differentiable."""

from fusedstep.linalg.lstsq import lstsq
from fusedstep.linalg.pinv import PinvInfo, pinv

__all__ = ["PinvInfo", "lstsq", "pinv"]
