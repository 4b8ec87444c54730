"""The last layer of a language model solved instead of trained."""

from fusedstep.lm_head.differentiable import least_squares
from fusedstep.lm_head.least_squares import LeastSquares
from fusedstep.lm_head.newton_block_diagonal import newton_block_diagonal
from fusedstep.lm_head.newton_bohning import newton_bohning
from fusedstep.lm_head.newton_cg import newton_cg
from fusedstep.lm_head.newton_components import newton_components
from fusedstep.lm_head.newton_full import newton_full
from fusedstep.lm_head.newton_joint import newton_joint
from fusedstep.lm_head.newton_recalculated import newton_components_recalculated
from fusedstep.lm_head.newton_result import NewtonResult

__all__ = [
    "LeastSquares",
    "NewtonResult",
    "least_squares",
    "newton_block_diagonal",
    "newton_bohning",
    "newton_cg",
    "newton_components",
    "newton_components_recalculated",
    "newton_full",
    "newton_joint",
]
