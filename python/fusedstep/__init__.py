"""Fused gradient clipping and optimizer steps for PyTorch, one formula for CPU and CUDA."""

from fusedstep import build  # first: it loads the C++ modules that the others call

__version__ = build.FACTS["version"]

from fusedstep import dynamics, lm_head, nqm, schedules
from fusedstep.linalg import lstsq, pinv
from fusedstep.optim import SGD, Adagrad, Adam, AdamW, Lion, Muon, RMSprop
from fusedstep.optim.clip import clip_grad_norm_, get_total_norm
from fusedstep.optim.param_groups import param_groups
from fusedstep.optim.qk_clip import qk_clip_

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "Muon",
    "RMSprop",
    "build",
    "clip_grad_norm_",
    "dynamics",
    "get_total_norm",
    "lm_head",
    "lstsq",
    "nqm",
    "param_groups",
    "pinv",
    "qk_clip_",
    "schedules",
]
