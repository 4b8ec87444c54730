"""The optimizers, one file each; what they share is in base.py, plans.py and plan.py."""

from fusedstep.optim.adagrad import Adagrad
from fusedstep.optim.adam import Adam
from fusedstep.optim.adamw import AdamW
from fusedstep.optim.lion import Lion
from fusedstep.optim.muon import Muon
from fusedstep.optim.rmsprop import RMSprop
from fusedstep.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "Muon", "RMSprop"]
