"""A learner whose items are rows of an export's catalogue, in whatever precision that has."""

from typing import Any

import tensorflow as tf

from tfmetarec.export.signatures import ServedLearner
from tfmetarec.meta.learner import AdaptedState
from tfmetarec.meta.paths import EncodedNegatives, TaskRows
from tfmetarec.tasks.episode import Features, Support


class EncodedLearner:
    """Adapts and scores as an export does, but outside its graph: the learner's own steps on the export's vectors.

    Args:
        served: what is exported.
    """

    def __init__(self, served: ServedLearner):
        self.learner, self.vocabulary = served.learner, served.vocabulary
        self._items = served.catalogue.decoded()

    def encode_item(self, features: Features) -> Any:
        """Encoded items by `features["item_id"]` alone: their rows in the catalogue, added items included."""
        return tf.nest.map_structure(lambda t: tf.gather(t, features["item_id"]), self._items)

    def adapt(self, support: Support) -> AdaptedState:
        """As `MetaLearner.adapt`."""
        learner, rows = self.learner, tf.constant(support.item["item_id"])
        label, real = learner.evidence(tf.constant(support.label), tf.constant(support.length))
        negatives = None
        if learner.feedback == "implicit":
            contrast = self.encode_item({"item_id": learner.contrast_items})
            weight = learner.contrast_weight(rows, real)
            negatives = EncodedNegatives(contrast, tf.constant(learner.contrast_log_expected), weight)
        user = learner._cut.encode_user(support.user, training=False)
        user = tf.nest.map_structure(lambda t: t[:, None], user)
        task = TaskRows(user, self.encode_item(support.item), label, tf.cast(real, label.dtype), negatives)
        return AdaptedState(learner.adapt_rows(task), user, None)

    def score(self, state: AdaptedState, item: Features) -> tf.Tensor:
        """As `MetaLearner.score`."""
        common = "item" if len(item["item_id"].shape) == 1 else None
        return self.learner.score_rows(state.weights, state.user, self.encode_item(item), common=common)
