"""A trained learner that has something to say of items without a row and of users without an interaction."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import LISTS, FeatureSpec, FeatureSpecs, Vocabulary
from tfmetarec.models.features import Apply, directly, placeholder_features
from tfmetarec.models.two_tower import TwoTower, UserTower
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.tasks.table import TaskTable
from tfmetarec.transfer.prototypes import LEAVE_ONE_OUT, ContentPrototypes

_BATCH = 256  # Users adapted at once.


@keras.saving.register_keras_serializable(package="tfmetarec")
class GroupStart(UserTower):
    """A `UserTower` whose query begins at what the user's group has learned, and adapts from there.

    Call arguments: as of `UserTower`, with user encodings `(..., width + D + 2)`: the group's query is appended.
    """

    def call(self, user: Any, item: Any = None, apply: Apply = directly) -> Any:
        query = super().call(user[..., : self.width], apply=apply) + user[..., self.width :]
        if item is None:
            return query
        if query.shape[-2] != 1:
            scores = tf.reduce_sum(query * item, -1)
        elif len(item.shape) < len(query.shape):  # Items common to all tasks: one matrix product.
            scores = tf.matmul(tf.squeeze(query, -2), item, transpose_b=True)
        else:
            scores = tf.squeeze(tf.matmul(item, query, transpose_b=True), -1)
        return keras.activations.get(self.activation)(scores)


@keras.saving.register_keras_serializable(package="tfmetarec")
class WithPrototypes(keras.Model):
    """A model completed by prototypes: of items that have no row, of users of whom nothing but the group is known.

    Known items keep their vectors. One that has no row (`item_id` 0, left out, or beyond the table, as of an item
    added later) has the vector of its content, as the model itself would have it, plus what its classes' prototypes
    say of the difference between content and truth. A user starts at the group's query and adapts from there, so K = 0
    is the group's answer, in a served graph as well.

    Args:
        model: `TwoTower`, `Ranker`, or another with `encode_user`, `encode_item` and `head`.
        items: `ContentPrototypes` of item vectors less those of content alone, as wide as `encode_item`.
        users: `ContentPrototypes` of queries of adapted users less the starting point's. The model's head must be a
            `UserTower`.

    Raises:
        ValueError: if the model has not these parts, a width differs, or neither is given.
    """

    def __init__(
        self,
        model: keras.Model,
        items: ContentPrototypes | None = None,
        users: ContentPrototypes | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name in ("encode_user", "encode_item", "head", "specs"):
            if not hasattr(model, name):
                raise ValueError(f"`model` must have `{name}`, as a TwoTower. Received: {type(model).__name__}")
        if items is None and users is None:
            raise ValueError("`items` or `users` must be given. Received: neither")
        width = model.encode_item(_one(placeholder_features(model.specs), model, "item")).shape[-1]
        for name, prototypes in (("items", items), ("users", users)):
            if prototypes is not None and prototypes.width != width:
                raise ValueError(f"`{name}` must have the width {width}. Received: width={prototypes.width}")
        if users is not None and not isinstance(model.head, UserTower):
            raise ValueError(
                "`users` need a model that scores by a dot product, such as a TwoTower. "
                f"Received: {type(model).__name__}"
            )
        self.model, self.items, self.users = model, items, users
        sides = {
            side: (*of_model, *_others(prototypes, of_model))
            for side, of_model, prototypes in (("user", model.specs.user, users), ("item", model.specs.item, items))
        }
        self.specs = dataclasses.replace(model.specs, **sides)
        self.vocabulary = getattr(model, "vocabulary", None)
        self.is_retrieval = getattr(model, "is_retrieval", False)
        self.takes_items_without_id = getattr(model, "takes_items_without_id", False)
        self._known = next(spec.size for spec in model.specs.item if spec.name == "item_id")
        self.head = model.head
        if users is not None:
            self.head = GroupStart.from_config({**model.head.get_config(), "name": "head"})
            self.head.set_weights(model.head.get_weights())
        self(placeholder_features(self.specs))

    def encode_user(self, features: Features, training: bool = False) -> Any:
        """User features `(...)` -> `(..., width)`, followed by the group's query where there are user prototypes."""
        encoded = self.model.encode_user(features, training=training)
        if self.users is None:
            return encoded
        return tf.concat([encoded, tf.cast(self.users(features), encoded.dtype)], -1)

    def encode_item(self, features: Features, training: bool = False) -> Any:
        """Item features `(...)` -> what the model's own `encode_item` gives, completed for items without a row."""
        if self.items is None:
            return self.model.encode_item(features, training=training)
        if "item_id" not in features:
            encoded = self.model.encode_item(features, training=training)
            return encoded + tf.cast(self.items(features), encoded.dtype)
        rows = tf.convert_to_tensor(features["item_id"])
        is_known = (rows > 0) & (rows < self._known)
        encoded = self.model.encode_item({**features, "item_id": tf.where(is_known, rows, 0)}, training=training)
        missing = tf.cast(self.items(features), encoded.dtype)
        return encoded + tf.where(is_known[..., None], tf.zeros_like(missing), missing)

    def call(self, features: Features, training: bool = False) -> Any:
        user, item = self.encode_user(features, training), self.encode_item(features, training)
        return self.head(user, item)[..., None]

    def get_config(self) -> dict[str, Any]:
        parts = {"model": self.model, "items": self.items, "users": self.users}
        saved = {name: keras.saving.serialize_keras_object(part) for name, part in parts.items()}
        return {**saved, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "WithPrototypes":
        config = dict(config)
        for name in ("model", "items", "users"):
            if config[name] is not None:
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


def _others(prototypes: ContentPrototypes | None, of_model: Sequence[FeatureSpec]) -> list[FeatureSpec]:
    """What prototypes read that the model itself does not."""
    known = {spec.name for spec in of_model}
    return [spec for spec in (prototypes.specs if prototypes is not None else ()) if spec.name not in known]


def zero_shot(
    learner: Any,
    interactions: Interactions,
    *,
    items: bool = True,
    item_features: Sequence[str] | None = None,
    user_features: Sequence[str] = (),
    shrinkage: float | str | dict[str, float] = LEAVE_ONE_OUT,
    caution: float = 1.0,
    interactions_for_trust: float = 20.0,
    most_support: int = 50,
    sample: int = 1000,
    seed: int = 0,
) -> Any:
    """Completes a trained learner by prototypes of items, and of groups of users if `user_features` name some.

    Args:
        learner: of `tfmetarec.meta`, trained, with a vocabulary; its model has `encode_user`, `encode_item` and `head`.
        interactions: what it was trained on.
        items: bool. Whether to find prototypes of items.
        item_features: names of the item features to use. Defaults to all but the id.
        user_features: names of the user features that make groups, e.g. `("gender", "age")`. Defaults to none.
        shrinkage: of both, see `ContentPrototypes.fit`.
        caution: the same.
        sample: the same.
        interactions_for_trust: float, at least 0: an item (or user) of `n` interactions counts as `n / (n + this)`.
        most_support: int, at least 1. Interactions of a training user that are adapted to, for groups.
        seed: int.

    Returns:
        A new learner of the same class around `WithPrototypes`; the one given stays as it was.

    Raises:
        ValueError: if the learner has no vocabulary, a feature is unknown, or an option is out of range.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=40, feedback="explicit", seed=0)
    >>> learner = tmr.meta.Ridge(tmr.models.TwoTower(tmr.data.Vocabulary.fit(data), 4))
    >>> completed = zero_shot(learner, data, user_features=["segment"], shrinkage=5.0)
    >>> type(completed).__name__, type(completed.model).__name__
    ('Ridge', 'WithPrototypes')
    """
    vocabulary: Vocabulary | None = getattr(learner, "vocabulary", None)
    if vocabulary is None:
        raise ValueError("`learner` needs a vocabulary, which says what its features are.")
    if not interactions_for_trust >= 0:
        raise ValueError(
            f"`interactions_for_trust` must be at least 0. Received: interactions_for_trust={interactions_for_trust}"
        )
    options: dict[str, Any] = {"shrinkage": shrinkage, "caution": caution, "sample": sample, "seed": seed}
    model = learner.model
    parts: dict[str, ContentPrototypes] = {}
    if items:
        chosen = _specs(vocabulary.specs.item, item_features, "item_features")
        rows = np.arange(1, vocabulary.n_items)
        features = {name: value[rows] for name, value in vocabulary.catalogue.items()}
        weight = vocabulary.popularity[rows] / (vocabulary.popularity[rows] + interactions_for_trust)
        vectors = item_vectors(model, features) - item_vectors(model, _content(features, model))
        parts["items"] = ContentPrototypes(chosen, vectors.shape[1], name="items")
        parts["items"].fit(features, vectors, weight=weight, **options)
    if user_features:
        chosen = _specs(vocabulary.specs.user, user_features, "user_features")
        users, vectors, count = user_vectors(learner, interactions, most_support=most_support, seed=seed)
        parts["users"] = ContentPrototypes(chosen, vectors.shape[1], name="users")
        weight = count / (count + interactions_for_trust)
        parts["users"].fit(users, vectors, weight=weight, **options)
    return _around(learner, WithPrototypes(model, **parts))


def item_vectors(model: keras.Model, features: Features) -> np.ndarray:
    """Encoded items `(N, D)` of any of our models, the bias among them; of a `TwoTower` a constant 1 comes last.

    Args:
        model: with `encode_item`.
        features: of `N` items. Leave `item_id` out, or 0, for what content alone gives.
    """
    return np.asarray(model.encode_item({name: tf.convert_to_tensor(value) for name, value in features.items()}))


def user_vectors(
    learner: Any, interactions: Interactions, *, most_support: int = 50, seed: int = 0
) -> tuple[Features, np.ndarray, np.ndarray]:
    """By how much each user's query moves from the starting point when the learner adapts to what the user did.

    Args:
        learner: with `adapt`, `query` and a vocabulary.
        interactions: of the users.
        most_support: int, at least 1. Of longer histories, so many at random.
        seed: int.

    Returns:
        User features of `M` users, moves `(M, D)`, and how many interactions each was adapted to, `(M,)`.
    """
    if most_support < 1:
        raise ValueError(f"`most_support` must be at least 1. Received: most_support={most_support}")
    table = TaskTable.build(interactions, learner.vocabulary)
    keys = np.random.default_rng(seed).random(len(table.item))
    shuffled = np.lexsort((keys, np.repeat(np.arange(len(table)), table.sizes)))
    moves = []
    for first in range(0, len(table), _BATCH):
        tasks = np.arange(first, min(first + _BATCH, len(table)))
        place = np.minimum(np.arange(most_support), table.sizes[tasks][:, None] - 1)
        slots = shuffled[table.start[tasks][:, None] + place]
        users = table.users.take(table.user[slots[:, 0]])
        length = np.minimum(table.sizes[tasks], most_support).astype(np.int32)
        support = Support(users, table.items.take(table.item[slots]), table.label[slots], length)
        start = learner.adapt(support._replace(length=np.zeros_like(length)))
        moves.append(np.asarray(learner.query(learner.adapt(support))) - np.asarray(learner.query(start)))
    users = table.users.take(table.user[table.start[:-1]])
    return users, np.concatenate(moves), np.minimum(table.sizes, most_support).astype(np.float64)


def two_tower_from_vectors(
    vocabulary: Vocabulary | FeatureSpecs, vectors: Any, *, level: float | None = None
) -> TwoTower:
    """A `TwoTower` whose items are given vectors, whatever made them: a factorisation, item2vec, another model.

    Its towers say nothing until they are trained, so an item without a row is the mean of nothing: complete it with
    `zero_shot`.

    Args:
        vocabulary: of the items, or its `specs`, of which some features may be left out for a faster model.
        vectors: `(I, D + 1)` by vocabulary row, the item's bias last. Row 0 is for items never seen.
        level: float, where scores start. Defaults to the mean label, and 0 for implicit feedback.

    Raises:
        ValueError: if there is not one vector for each row of the vocabulary.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=20, feedback="explicit", seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> vectors = np.random.default_rng(0).normal(size=(vocabulary.n_items, 5)).astype(np.float32)
    >>> model = two_tower_from_vectors(vocabulary, vectors)
    >>> bool(np.allclose(item_vectors(model, vocabulary.catalogue)[:, :5], vectors))
    True
    """
    vectors = np.asarray(vectors, np.float32)
    specs = vocabulary.specs if isinstance(vocabulary, Vocabulary) else vocabulary
    n_items = next((spec.size for spec in specs.item if spec.name == "item_id"), None)
    if n_items is None:
        raise ValueError("`vocabulary` must have the feature `item_id`, to which the vectors belong. Received: none")
    if vectors.ndim != 2 or len(vectors) != n_items or vectors.shape[1] < 2:
        raise ValueError(
            f"`vectors` must have shape ({n_items}, D + 1), a row for each of the vocabulary. Received: {vectors.shape}"
        )
    model = TwoTower(vocabulary, vectors.shape[1] - 1, item_hidden=(), dropout=0.0, id_dropout=0.0)
    encoder, head = model.item_encoder, model.head
    encoder.id_vector.embeddings.assign(vectors[:, :-1])
    encoder.id_bias.embeddings.assign(vectors[:, -1:])
    encoder.level_weight.assign(0.0)
    for layer in (encoder.tower.dense[-1], head.tower.dense[-1]):
        layer.kernel.assign(np.zeros(layer.kernel.shape, np.float32))
    if level is not None:
        head.level.kernel.assign([[level]])
    return model


def _around(learner: Any, model: keras.Model) -> Any:
    """The same learner, with the numbers it has learned of its own, around another model."""
    config = {name: value for name, value in learner.get_config().items() if name != "model"}
    made = type(learner)(model, vocabulary=learner.vocabulary, **config)
    of_model = {id(variable) for variable in learner.model.variables}
    of_new = {id(variable) for variable in model.variables}
    old = [variable for variable in learner.variables if id(variable) not in of_model]
    new = [variable for variable in made.variables if id(variable) not in of_new]
    for variable, value in zip(new, old, strict=True):
        if variable.shape != value.shape:
            raise ValueError(
                f"`user_features` cannot be for a {type(learner).__name__}, which has learned weights of its own for "
                "user encodings: with groups these are wider."
            )
        variable.assign(value)
    made.compile_from_config(learner.get_compile_config())  # Adapting follows the loss.
    return made


def _specs(specs: Sequence[FeatureSpec], names: Sequence[str] | None, argument: str) -> list[FeatureSpec]:
    usable = {spec.name: spec for spec in specs if spec.kind != "id" and spec.name != "item_level"}
    chosen = list(usable) if names is None else list(names)
    if unknown := [name for name in chosen if name not in usable]:
        raise ValueError(f"`{argument}` must be of {sorted(usable)}. Received: {unknown[0]!r}")
    if not chosen:
        raise ValueError(f"`{argument}` must hold at least one feature, and there is none.")
    return [usable[name] for name in chosen]


def _content(features: Features, model: keras.Model) -> Features:
    """The same items without their rows."""
    if getattr(model, "takes_items_without_id", False):
        return {name: value for name, value in features.items() if name != "item_id"}
    return {**features, "item_id": tf.zeros_like(features["item_id"])}


def _one(features: Features, model: keras.Model, side: str) -> Features:
    names = {spec.name for spec in getattr(model.specs, side)}
    names |= {f"{spec.name}_length" for spec in getattr(model.specs, side) if spec.kind in LISTS}
    return {name: value for name, value in features.items() if name in names}
