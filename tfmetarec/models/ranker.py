"""Embeddings of user and item content into an MLP that adapts."""

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
from tfmetarec.models.two_tower import check_options
from tfmetarec.tasks.episode import Features


@keras.saving.register_keras_serializable(package="tfmetarec")
class DecisionLayers(keras.layers.Layer):
    """The part of a `Ranker` that adapts: an MLP over user and item side by side, plus the item's bias.

    Args:
        user_width: int, of the user encoding.
        item_width: int, of the item encoding, its bias last.
        hidden: ints, widths of the hidden layers.
        score_bias: float. Where the last bias starts, e.g. the mean rating.
        activation: "linear" or "sigmoid".

    Call arguments: user `(..., R, user_width)`, item `(..., R, item_width)`; either may be one row for all, and may
    lack the leading dimensions of the other. `apply`: how a Dense layer runs. Returns `(..., R)`.
    """

    def __init__(
        self,
        user_width: int,
        item_width: int,
        hidden: Sequence[int] = (64, 64),
        score_bias: float = 0.0,
        activation: str = "linear",
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.activation = activation
        self.user_width, self.item_width, self.hidden = user_width, item_width, tuple(hidden)
        self.score_bias, self.seed = score_bias, seed
        self.tower = Tower(
            user_width + item_width - 1, 1, self.hidden, output_bias=score_bias, seed=seed + 200, name="tower"
        )
        self.built = True

    def call(self, user: Any, item: Any, apply: Apply = directly) -> Any:
        if len(item.shape) < len(user.shape):
            item = item[None]
        vector, bias = item[..., :-1], item[..., -1]
        if user.shape[:-1] != vector.shape[:-1]:
            sizes = zip(ops.shape(user)[:-1], ops.shape(item)[:-1], strict=True)
            leading = [b if isinstance(a, int) and a == 1 else a for a, b in sizes]  # No rows are fewer than one.
            user = ops.broadcast_to(user, (*leading, self.user_width))
            vector = ops.broadcast_to(vector, (*leading, self.item_width - 1))
        scores = ops.squeeze(self.tower(ops.concatenate([user, vector], axis=-1), apply=apply), -1) + bias
        return keras.activations.get(self.activation)(scores)

    def get_config(self) -> dict[str, Any]:
        names = ("user_width", "item_width", "hidden", "score_bias", "activation", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="tfmetarec")
class Ranker(keras.Model):
    """Scores a user against an item by an MLP over both; the MLP adapts, as in MeLU.

    More expressive than a `TwoTower`, and dearer to serve: ranking a catalogue runs the MLP on every item.

    Args:
        vocabulary: `tfmetarec.data.Vocabulary`, or its `specs`.
        embedding_dim: int, at least 1. Width of the item vector. Defaults to 32.
        hidden: ints. Hidden layers of the MLP. Defaults to two of width 64.
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

    Reference: [Lee et al., 2019](https://arxiv.org/abs/1908.00413)
    """

    takes_items_without_id = True  # See `TwoTower`.

    def __init__(
        self,
        vocabulary: Vocabulary | FeatureSpecs | dict,
        embedding_dim: int = 32,
        *,
        hidden: Sequence[int] = (64, 64),
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
        self.embedding_dim, self.hidden = embedding_dim, tuple(hidden)
        self.dropout, self.id_dropout, self.activation, self.seed = dropout, id_dropout, activation, seed
        self.fusion, self.modality_dropout, self.id_width = fusion, modality_dropout, id_width
        implicit = self.specs.feedback == "implicit"
        user = [spec for spec in self.specs.user if spec.kind != "id"]
        self.user_encoder = FeatureEncoder(user, max(4, embedding_dim // 2), seed, name="user_encoder")
        self.item_encoder = ItemEncoder(
            self.specs.item,
            embedding_dim,
            (),
            dropout,
            id_dropout,
            seed=seed,
            fusion=fusion,
            modality_dropout=modality_dropout,
            id_width=id_width,
            name="item_encoder",
        )
        self.head = DecisionLayers(
            self.user_encoder.width,
            self.item_encoder.width,
            self.hidden,
            score_bias=0.0 if implicit else self.specs.label_mean,
            activation=activation,
            seed=seed,
            name="head",
        )
        self(placeholder_features(self.specs))

    def encode_user(self, features: Features, training: bool = False) -> Any:
        """User features `(...)` -> `(..., user_width)`, the part before anything adapts."""
        return self.user_encoder(features)

    def encode_item(self, features: Features, training: bool = False) -> Any:
        """Item features `(...)` -> `(..., item_width)`."""
        return self.item_encoder(features, training=training)

    def call(self, features: Features, training: bool = False) -> Any:
        user, item = self.encode_user(features, training), self.encode_item(features, training)
        return self.head(user, item)[..., None]

    def get_config(self) -> dict[str, Any]:
        names = ["embedding_dim", "hidden", "dropout", "id_dropout", "activation", "seed"]
        names += ["fusion", "modality_dropout", "id_width"]
        config = {name: getattr(self, name) for name in names}
        return {**super().get_config(), "vocabulary": self.specs.to_dict(), **config}
