"""Meta-learners, one file each."""

from tfmetarec.meta.checkpoint import Checkpoint
from tfmetarec.meta.learner import AdaptedState, MetaLearner, TaskRows
from tfmetarec.meta.losses import RowLoss, SampledSoftmax
from tfmetarec.meta.maml import MAML

__all__ = ["MAML", "AdaptedState", "Checkpoint", "MetaLearner", "RowLoss", "SampledSoftmax", "TaskRows"]
