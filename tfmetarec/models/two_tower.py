"""A user tower and an item tower whose vectors meet in a dot product; only the user side adapts."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfmetarec.data.vocabulary import FeatureSpecs, Vocabulary
from tfmetarec.models.features import (
    Apply,
    FeatureEncoder,
    ItemEncoder,
    Tower,
    directly,
    placeholder_features,
    resolve_specs,
)
from tfmetarec.tasks.episode import Features


@keras.saving.register_keras_serializable(package="tfmetarec")
class UserTower(keras.layers.Layer):
    """The part of a `TwoTower` that adapts: from the user's features to a query vector, and the scores.

    The tower's last bias is in effect the user's own vector, and `level` (a Dense layer on a constant 1, whose kernel
    starts at `score_bias`) the user's own level.

    Args:
        width: int, of the user encoding.
        embedding_dim: int, `D`.
        hidden: ints, widths of hidden layers.
        score_bias: float. Where the level starts, e.g. the mean rating.
        activation: "linear" or "sigmoid", applied to the dot product.

    Call arguments:
        user: `(..., 1, width)`, one user for all rows, or `(..., R, width)`.
        item: `(..., R, D + 2)`: item vector, item bias, and a constant 1; `(R, D + 2)` for items common to all
            tasks; or `None` for the query vector alone.
        apply: how a Dense layer runs.

    Returns `(..., R)` scores; without items the query `(..., 1, D + 2)`, whose dot product with an item (through
    `activation`) is the score.
    """

    def __init__(
        self,
        width: int,
        embedding_dim: int = 64,
        hidden: Sequence[int] = (),
        score_bias: float = 0.0,
        activation: str = "linear",
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.activation = activation
        self.width, self.embedding_dim, self.hidden, self.seed = width, embedding_dim, tuple(hidden), seed
        self.initial_score_bias = score_bias
        level = keras.initializers.Constant(score_bias)
        self.level = keras.layers.Dense(1, use_bias=False, kernel_initializer=level, name="level")
        self.level.build((None, 1))
        self.tower = Tower(width, embedding_dim, self.hidden, seed=seed + 100, name="tower")
        self.built = True

    def call(self, user: Any, item: Any = None, apply: Apply = directly) -> Any:
        vector = self.tower(user, apply=apply)
        ones = ops.ones_like(vector[..., :1])
        query = ops.concatenate([vector, ones, apply(self.level, ones)], axis=-1)
        if item is None:
            return query
        if query.shape[-2] != 1:
            scores = ops.sum(query * item, axis=-1)
        elif len(item.shape) < len(query.shape):  # Items common to all tasks: one matrix product.
            scores = ops.matmul(ops.squeeze(query, -2), ops.transpose(item))
        else:  # One user for all rows: a product of a matrix and a vector, for each task.
            scores = ops.squeeze(ops.matmul(item, ops.swapaxes(query, -1, -2)), -1)
        return keras.activations.get(self.activation)(scores)

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("width", "embedding_dim", "hidden", "activation", "seed")}
        return {**super().get_config(), **own, "score_bias": self.initial_score_bias}


@keras.saving.register_keras_serializable(package="tfmetarec")
class TwoTower(keras.Model):
    """Scores a user against an item by the dot product of their vectors plus the item's bias.

    Since only the user side adapts, item vectors, and with them an index of the whole catalogue, stay valid
    for every adapted user: adapt, then search, in one request.

    Args:
        vocabulary: `tfmetarec.data.Vocabulary`, or its `specs`.
        embedding_dim: int, at least 1. `D`, the width of the vectors. Defaults to 64.
        user_hidden: ints. Hidden layers of the user tower. Defaults to none.
        item_hidden: ints. Hidden layers of the item tower. Defaults to one of width `D`.
        dropout: float in [0, 1), in the item tower. Defaults to 0.1.
        id_dropout: float in [0, 1). Share of training rows whose item id is hidden. Defaults to 0.1.
        activation: "linear" (ratings and logits) or "sigmoid" (probabilities).
        seed: int, of all initial weights and dropout.
        fusion: what becomes of item features that are vectors: "concatenate" (beside the others), "gate" (mixed by a
            learned gate, robust to missing ones) or "gate_all" (the other item features are one of those mixed). See
            `FeatureEncoder`. Defaults to "concatenate".
        modality_dropout: float in [0, 1). Share of training rows from which each modality is hidden, for the gates
            alone. Defaults to `None`: 0.2 where there is a gate.
        id_width: int, at least 1. Width of the table of item ids, projected to `embedding_dim`. Defaults to `None`: a
            table of width `embedding_dim`, without a projection.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=20, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> model = TwoTower(vocabulary, embedding_dim=8)
    >>> features = tmr.models.placeholder_features(vocabulary.specs)
    >>> model(features).shape
    TensorShape([1, 1])

    Reference: [Yi et al., 2019](https://doi.org/10.1145/3298689.3346996)
    """

    is_retrieval = True  # `head(user)` is a query vector: a score is its dot product with an encoded item.
    takes_items_without_id = True  # `encode_item` does without `item_id`, for items that have no row.

    def __init__(
        self,
        vocabulary: Vocabulary | FeatureSpecs | dict,
        embedding_dim: int = 64,
        *,
        user_hidden: Sequence[int] = (),
        item_hidden: Sequence[int] | None = None,
        dropout: float = 0.1,
        id_dropout: float = 0.1,
        activation: str = "linear",
        seed: int = 0,
        fusion: str = "concatenate",
        modality_dropout: float | None = None,
        id_width: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_options(embedding_dim=embedding_dim, dropout=dropout, id_dropout=id_dropout, activation=activation)
        self.specs = resolve_specs(vocabulary)
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else None
        self.embedding_dim, self.user_hidden = embedding_dim, tuple(user_hidden)
        self.item_hidden = (embedding_dim,) if item_hidden is None else tuple(item_hidden)
        self.dropout, self.id_dropout, self.activation, self.seed = dropout, id_dropout, activation, seed
        self.fusion, self.modality_dropout, self.id_width = fusion, modality_dropout, id_width
        implicit = self.specs.feedback == "implicit"
        user = [spec for spec in self.specs.user if spec.kind != "id"]
        self.user_encoder = FeatureEncoder(user, max(4, embedding_dim // 4), seed, name="user_encoder")
        self.item_encoder = ItemEncoder(
            self.specs.item,
            embedding_dim,
            self.item_hidden,
            dropout,
            id_dropout,
            seed=seed,
            fusion=fusion,
            modality_dropout=modality_dropout,
            id_width=id_width,
            name="item_encoder",
        )
        self.head = UserTower(
            self.user_encoder.width,
            embedding_dim,
            self.user_hidden,
            score_bias=0.0 if implicit else self.specs.label_mean,
            activation=activation,
            seed=seed,
            name="head",
        )
        self(placeholder_features(self.specs))

    def encode_user(self, features: Features, training: bool = False) -> Any:
        """User features `(..., )` -> `(..., width)`, the part before anything adapts."""
        return self.user_encoder(features)

    def encode_item(self, features: Features, training: bool = False) -> Any:
        """Item features `(...)` -> `(..., D + 2)`: the vector, the bias, and a 1 for the user's own level."""
        encoded = self.item_encoder(features, training=training)
        return ops.concatenate([encoded, ops.ones_like(encoded[..., :1])], axis=-1)

    def call(self, features: Features, training: bool = False) -> Any:
        user, item = self.encode_user(features, training), self.encode_item(features, training)
        return self.head(user, item)[..., None]

    def get_config(self) -> dict[str, Any]:
        names = ["embedding_dim", "user_hidden", "item_hidden", "dropout", "id_dropout", "activation", "seed"]
        names += ["fusion", "modality_dropout", "id_width"]
        config = {name: getattr(self, name) for name in names}
        return {**super().get_config(), "vocabulary": self.specs.to_dict(), **config}


def check_options(*, embedding_dim: int, dropout: float, id_dropout: float, activation: str) -> None:
    """Refuses model options out of range, with the argument, the rule and what came."""
    if embedding_dim < 1:
        raise ValueError(f"`embedding_dim` must be at least 1. Received: embedding_dim={embedding_dim}")
    for name, share in (("dropout", dropout), ("id_dropout", id_dropout)):
        if not 0 <= share < 1:
            raise ValueError(f"`{name}` must be at least 0 and less than 1. Received: {name}={share}")
    if activation not in ("linear", "sigmoid"):
        raise ValueError(f"`activation` must be 'linear' or 'sigmoid'. Received: activation={activation!r}")
