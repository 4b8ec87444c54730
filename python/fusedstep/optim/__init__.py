"""The optimizers, one file per rule; optimizer.py has their base class, options.py the options."""

from fusedstep.optim.adagrad import Adagrad
from fusedstep.optim.adam import Adam, AdamW
from fusedstep.optim.lion import Lion
from fusedstep.optim.muon import Muon
from fusedstep.optim.options import Options
from fusedstep.optim.rmsprop import RMSprop
from fusedstep.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "Muon", "Options", "RMSprop"]
