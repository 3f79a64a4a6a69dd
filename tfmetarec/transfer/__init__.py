"""Knowledge from elsewhere: a large teacher, another domain, an item nobody has touched, pretrained content."""

from tfmetarec.transfer.adaptive import AdaptiveTransfer
from tfmetarec.transfer.classifier import PrototypeClassifier, class_episodes
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, cross_domain, method_class
from tfmetarec.transfer.cross_domain import load as load_method
from tfmetarec.transfer.distillation import Distiller
from tfmetarec.transfer.distillation_losses import (
    BinarySoftLabels,
    FeatureHints,
    RankingDistillation,
    RelaxedRanking,
    SoftmaxSoftLabels,
    SquaredSoftLabels,
)
from tfmetarec.transfer.distilled import DistilledTransfer
from tfmetarec.transfer.emcdr import EMCDR
from tfmetarec.transfer.fine_tuning import FineTuning, freeze, thaw
from tfmetarec.transfer.hierarchical import HierarchicalTransfer
from tfmetarec.transfer.initialization import Thaw, initialize_embedding
from tfmetarec.transfer.item2vec import WordVectors, item2vec
from tfmetarec.transfer.joint_training import JointTraining
from tfmetarec.transfer.kernel import KernelTransfer
from tfmetarec.transfer.median import MedianRatings
from tfmetarec.transfer.meta_transfer import MetaTransfer
from tfmetarec.transfer.mixture import Mixture
from tfmetarec.transfer.pretrained import ItemVectors, with_vectors
from tfmetarec.transfer.prototypes import ContentPrototypes, Prototypes, class_means, clusters
from tfmetarec.transfer.ptupcdr import PTUPCDR
from tfmetarec.transfer.soft_labels import SoftLabelTeacher, write_soft_labels
from tfmetarec.transfer.teachers import LearnerTeacher, ModelTeacher, SavedModelTeacher, Teacher, map_items
from tfmetarec.transfer.text_vectors import item_text_vectors, text_vectors
from tfmetarec.transfer.translation import translated_teacher
from tfmetarec.transfer.zero_shot import WithPrototypes, two_tower_from_vectors, zero_shot

SOFT_LOSSES = ("BinarySoftLabels", "RankingDistillation", "RelaxedRanking", "SoftmaxSoftLabels", "SquaredSoftLabels")
"""The losses by which a teacher's scores are compared with a student's."""

__all__ = [
    "EMCDR",
    "PTUPCDR",
    "SOFT_LOSSES",
    "AdaptiveTransfer",
    "BinarySoftLabels",
    "ContentPrototypes",
    "CrossDomainMethod",
    "DistilledTransfer",
    "Distiller",
    "Domains",
    "FeatureHints",
    "FineTuning",
    "HierarchicalTransfer",
    "ItemVectors",
    "JointTraining",
    "KernelTransfer",
    "LearnerTeacher",
    "MedianRatings",
    "MetaTransfer",
    "Mixture",
    "ModelTeacher",
    "PrototypeClassifier",
    "Prototypes",
    "RankingDistillation",
    "RelaxedRanking",
    "SavedModelTeacher",
    "SoftLabelTeacher",
    "SoftmaxSoftLabels",
    "SquaredSoftLabels",
    "Teacher",
    "Thaw",
    "WithPrototypes",
    "WordVectors",
    "class_episodes",
    "class_means",
    "clusters",
    "cross_domain",
    "freeze",
    "initialize_embedding",
    "item2vec",
    "item_text_vectors",
    "load_method",
    "map_items",
    "method_class",
    "text_vectors",
    "thaw",
    "translated_teacher",
    "two_tower_from_vectors",
    "with_vectors",
    "write_soft_labels",
    "zero_shot",
]
