"""Fused gradient clipping and optimizer steps for PyTorch, one formula for CPU and CUDA."""

from fusedstep import build

__all__ = ["build"]
__version__ = "0.1.0"
