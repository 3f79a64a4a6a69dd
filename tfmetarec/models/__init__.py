"""Plain Keras models that know nothing of episodes, and the baselines every learner is compared with."""

from tfmetarec.models.embedding import RowSparseEmbedding
from tfmetarec.models.features import FeatureEncoder, ItemEncoder, ListPooling, placeholder_features
from tfmetarec.models.fusion import GateFusion
from tfmetarec.models.ranker import Ranker
from tfmetarec.models.sequence import Sequence
from tfmetarec.models.two_tower import TwoTower

__all__ = [
    "FeatureEncoder",
    "GateFusion",
    "ItemEncoder",
    "ListPooling",
    "Ranker",
    "RowSparseEmbedding",
    "Sequence",
    "TwoTower",
    "placeholder_features",
]
