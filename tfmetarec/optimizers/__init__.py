"""Keras optimizers whose step touches only the rows of the batch, for embedding tables of any size."""

from tfmetarec.optimizers.adagrad import RowSparseAdagrad
from tfmetarec.optimizers.adam import RowSparseAdam, RowSparseAdamW
from tfmetarec.optimizers.sgd import RowSparseSGD

__all__ = ["RowSparseAdagrad", "RowSparseAdam", "RowSparseAdamW", "RowSparseSGD"]
