"""The noisy quadratic model: which batch size, rate and schedule, and whether momentum helps.

    from fusedstep import nqm
    nqm.steps_to_target("sgd", batch_size=64)  # Result(steps=95761, lr=0.215, momentum=0.0)
    nqm.critical_batch_size("momentum")  # examples per step, from which on more do not help

Every mean loss is exact (second moments in float64), not sampled; `simulate` samples it through a
real optimizer. The model is that of Zhang et al. 2019, "Which Algorithmic Choices Matter at Which
Batch Sizes?", arXiv 1907.04164. `NoiseScale` measures a real run instead.
"""

from fusedstep.nqm.curve import loss_curve
from fusedstep.nqm.noise_scale import NoiseScale
from fusedstep.nqm.schedule import Schedule, optimal_schedule
from fusedstep.nqm.simulate import Simulation, simulate
from fusedstep.nqm.steps import Result, critical_batch_size, steps_to_target

__all__ = [
    "NoiseScale",
    "Result",
    "Schedule",
    "Simulation",
    "critical_batch_size",
    "loss_curve",
    "optimal_schedule",
    "simulate",
    "steps_to_target",
]
