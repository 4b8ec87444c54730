"""The optimizers, one file a rule; optimizer.py has what they share, options.py what they add."""

from fusedstep.optim.adagrad import Adagrad
from fusedstep.optim.adam import Adam, AdamW
from fusedstep.optim.lion import Lion
from fusedstep.optim.muon import Muon
from fusedstep.optim.options import Options
from fusedstep.optim.rmsprop import RMSprop
from fusedstep.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lion", "Muon", "Options", "RMSprop"]
