"""The dynamics of training: curvature, stability, and models whose training is solved exactly.

    from fusedstep import dynamics
    dynamics.preconditioned_sharpness(optimizer, loss_fn)  # the curvature that the optimizer sees
    dynamics.stability_threshold(optimizer)  # what it can stand

Above the threshold a step overshoots; full-batch training hovers there, at the edge of stability
(Cohen et al. 2021, arXiv 2103.00065; 2022, arXiv 2207.14484).
"""

from fusedstep.dynamics.curvature import Eigenpairs, hessian_top_eigenvalues, sharpness
from fusedstep.dynamics.kernel import kernel_prediction, ntk
from fusedstep.dynamics.linear_modes import deep_linear_modes
from fusedstep.dynamics.monitor import Measurement, SharpnessMonitor
from fusedstep.dynamics.preconditioner import preconditioned_sharpness
from fusedstep.dynamics.threshold import stability_threshold

__all__ = [
    "Eigenpairs",
    "Measurement",
    "SharpnessMonitor",
    "deep_linear_modes",
    "hessian_top_eigenvalues",
    "kernel_prediction",
    "ntk",
    "preconditioned_sharpness",
    "sharpness",
    "stability_threshold",
]
