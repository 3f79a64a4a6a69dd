"""Searching with Keras Tuner: the inner and the outer learning rate, and everything else a configuration has."""

from tfmetarec.tuning.hypermodel import MetaHyperModel
from tfmetarec.tuning.oracles import make_oracle
from tfmetarec.tuning.plots import drawings, importance
from tfmetarec.tuning.results import best_trial, epochs_of, in_words, ranked, trials_table, write_tensorboard
from tfmetarec.tuning.search import search
from tfmetarec.tuning.space import SPACE, Choice, Dimension, Range, holding, ordered, read_dimension
from tfmetarec.tuning.stopping import MedianStopping
from tfmetarec.tuning.tuner import MetaTuner
from tfmetarec.tuning.workers import lead, role

__all__ = [
    "SPACE",
    "Choice",
    "Dimension",
    "MedianStopping",
    "MetaHyperModel",
    "MetaTuner",
    "Range",
    "best_trial",
    "drawings",
    "epochs_of",
    "holding",
    "importance",
    "in_words",
    "lead",
    "make_oracle",
    "ordered",
    "ranked",
    "read_dimension",
    "role",
    "search",
    "trials_table",
    "write_tensorboard",
]
