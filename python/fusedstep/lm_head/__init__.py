"""The last layer of a language model solved instead of trained."""

from fusedstep.lm_head._least_squares import LeastSquares, least_squares
from fusedstep.lm_head.newton_minima import newton_block_diagonal, newton_bohning, newton_cg
from fusedstep.lm_head.newton_recalculated import newton_components_recalculated
from fusedstep.lm_head.newton_roots import newton_components, newton_full, newton_joint
from fusedstep.lm_head.problem import NewtonResult
from fusedstep.lm_head.temperature import Temperature, fit_temperature

__all__ = [
    "LeastSquares",
    "NewtonResult",
    "Temperature",
    "fit_temperature",
    "least_squares",
    "newton_block_diagonal",
    "newton_bohning",
    "newton_cg",
    "newton_components",
    "newton_components_recalculated",
    "newton_full",
    "newton_joint",
]
