"""Meta-learners, one file each."""

from tfmetarec.meta.anil import ANIL
from tfmetarec.meta.boil import BOIL
from tfmetarec.meta.checkpoint import Checkpoint
from tfmetarec.meta.fine_tuning import FineTuning
from tfmetarec.meta.first_order_maml import FirstOrderMAML
from tfmetarec.meta.imaml import IMAML
from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.meta.learner import AdaptedState, MetaLearner, OuterLoss
from tfmetarec.meta.losses import RowLoss, SampledSoftmax
from tfmetarec.meta.maml import MAML
from tfmetarec.meta.maml_plus_plus import MAMLPlusPlus
from tfmetarec.meta.meta_sgd import MetaSGD
from tfmetarec.meta.neural_process import NeuralProcess
from tfmetarec.meta.paths import EncodedNegatives, TaskRows
from tfmetarec.meta.prototypical_network import PrototypicalNetwork
from tfmetarec.meta.reptile import Reptile
from tfmetarec.meta.ridge import Ridge
from tfmetarec.meta.set_encoder import SetEncoder

__all__ = [
    "ANIL",
    "BOIL",
    "IMAML",
    "MAML",
    "AdaptedState",
    "Checkpoint",
    "EncodedNegatives",
    "FineTuning",
    "FirstOrderMAML",
    "GradientLearner",
    "MAMLPlusPlus",
    "MetaLearner",
    "MetaSGD",
    "NeuralProcess",
    "OuterLoss",
    "PrototypicalNetwork",
    "Reptile",
    "Ridge",
    "RowLoss",
    "SampledSoftmax",
    "SetEncoder",
    "TaskRows",
]
