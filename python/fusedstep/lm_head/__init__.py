"""The last layer of a language model solved instead of trained."""

from fusedstep.lm_head.differentiable import least_squares
from fusedstep.lm_head.least_squares import LeastSquares

__all__ = ["LeastSquares", "least_squares"]
