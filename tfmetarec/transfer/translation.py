"""Between two vocabularies: the same users and items, in other rows."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.data.vocabulary import LISTS, FeatureSpec, Vocabulary
from tfmetarec.tasks.episode import Features
from tfmetarec.transfer.teachers import LearnerTeacher, map_items

UNKNOWN_ITEMS = ("leave_out", "content")


def translated_teacher(learner: Any, vocabulary: Vocabulary, *, unknown_items: str = "leave_out") -> LearnerTeacher:
    """A trained learner as the teacher of a student with another vocabulary, such as that of another domain.

    Items are found by their raw ids, user features by their raw values; what the teacher has never seen is row 0 to it.

    Args:
        learner: has a `vocabulary`, `adapt(support)` and `score(state, item=features)`.
        vocabulary: of the student.
        unknown_items: what becomes of the student's items that the teacher has no row for: "leave_out" of the soft
            loss, or score them by their "content" as items without a row, which a teacher from another domain needs.

    Raises:
        ValueError: for another `unknown_items`, a learner without a vocabulary, or catalogues with no item in common.
    """
    if unknown_items not in UNKNOWN_ITEMS:
        raise ValueError(
            f"`unknown_items` must be one of {', '.join(map(repr, UNKNOWN_ITEMS))}. "
            f"Received: unknown_items={unknown_items!r}"
        )
    own = getattr(learner, "vocabulary", None)
    if own is None:
        raise ValueError("a teacher whose rows are translated needs a vocabulary, and this learner has none.")
    known = own
    if unknown_items == "content":
        shared = [feature.name for feature in own.schema.item if feature.name in vocabulary.items.columns]
        missing = vocabulary.items.filter(~np.isin(vocabulary.item_ids[1:], own.item_ids[1:])).select(shared)
        known = own.with_items(missing) if len(missing) else own
    items = map_items(vocabulary, known)
    return LearnerTeacher(learner, features=UserTranslation(vocabulary, own), items=items, catalogue=known.catalogue)


class UserTranslation:
    """User features encoded by one vocabulary, as another one encodes them; item features pass as they are.

    Args:
        source: vocabulary of the features that come.
        target: vocabulary of the features that are wanted; what `source` lacks counts as missing.
    """

    def __init__(self, source: Vocabulary, target: Vocabulary):
        self.source, self.target = source, target
        self._known = {spec.name: spec for spec in source.specs.user}
        self._rows = {
            spec.name: _row_map(source, target, spec.name)
            for spec in target.specs.user
            if spec.kind not in ("number", "vector") and self._matches(spec)
        }

    def __call__(self, features: Features) -> Features:
        if "user_id" not in features:
            return features
        user = tf.convert_to_tensor(features["user_id"])
        translated: Features = {}
        for spec in self.target.specs.user:
            value = tf.convert_to_tensor(features[spec.name]) if self._matches(spec) else None
            if spec.kind == "number":
                translated[spec.name] = tf.zeros(tf.shape(user)) if value is None else self._number(spec.name, value)
            elif spec.kind == "vector":
                width = tf.concat([tf.shape(user), [spec.size]], 0)
                translated[spec.name] = tf.zeros(width) if value is None else value
            elif spec.kind in LISTS:
                translated |= self._list(spec, value, features, user)
            else:
                translated[spec.name] = (
                    tf.zeros_like(user) if value is None else tf.gather(self._rows[spec.name], value)
                )
        return translated

    def _matches(self, spec: FeatureSpec) -> bool:
        found = self._known.get(spec.name)
        return found is not None and found.kind == spec.kind and (spec.kind != "vector" or found.size == spec.size)

    def _number(self, name: str, value: tf.Tensor) -> tf.Tensor:
        """From the one vocabulary's standard deviations to the other's; 0 is what is missing, or the mean itself."""
        (mean, deviation), (wanted_mean, wanted_deviation) = (
            vocabulary.moments("user", name) for vocabulary in (self.source, self.target)
        )
        return tf.where(value == 0, 0.0, (value * deviation + mean - wanted_mean) / wanted_deviation)

    def _list(self, spec: FeatureSpec, value: Any, features: Features, user: tf.Tensor) -> Features:
        name = f"{spec.name}_length"
        if value is None:
            return {
                spec.name: tf.zeros(tf.concat([tf.shape(user), [spec.length]], 0), tf.int32),
                name: tf.zeros_like(user),
            }
        rows = tf.gather(self._rows[spec.name], value)[..., : spec.length]
        missing = spec.length - rows.shape[-1]
        rows = tf.pad(rows, [*[[0, 0]] * (rows.shape.rank - 1), [0, missing]])
        return {spec.name: rows, name: tf.minimum(tf.convert_to_tensor(features[name]), spec.length)}


def _row_map(source: Vocabulary, target: Vocabulary, name: str) -> np.ndarray:
    """Rows in `target` by the rows in `source` of one user feature."""
    values, size = source.known_values("user", name), next(s.size for s in source.specs.user if s.name == name)
    rows = np.zeros(size, np.int32)
    if values is not None and len(values):
        rows[1 : len(values) + 1] = target.rows("user", name, tf.constant(values)).numpy()
    return rows
