"""Encoded features -> one vector per row, driven by the schema alone."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfmetarec.data.vocabulary import LISTS, FeatureSpec, FeatureSpecs, Vocabulary
from tfmetarec.models.embedding import RowSparseEmbedding
from tfmetarec.models.fusion import GateFusion, as_direction, check_fusion, is_present
from tfmetarec.tasks.episode import Features

Apply = Callable[[keras.layers.Layer, Any], Any]
_OTHERS = ""  # The modality of all that is no vector; no feature is called so.


def directly(layer: keras.layers.Layer, inputs: Any) -> Any:
    """Runs a layer as it is."""
    return layer(inputs)


def resolve_specs(vocabulary: Vocabulary | FeatureSpecs | dict) -> FeatureSpecs:
    """The specs behind whatever a model was given: a `Vocabulary`, its `specs`, or their saved form."""
    if isinstance(vocabulary, Vocabulary):
        return vocabulary.specs
    if isinstance(vocabulary, dict):
        return FeatureSpecs.from_dict(vocabulary)
    if isinstance(vocabulary, FeatureSpecs):
        return vocabulary
    raise TypeError(
        "`vocabulary` must be a `tfmetarec.data.Vocabulary` fitted on training interactions. "
        f"Received: {type(vocabulary).__name__}"
    )


def placeholder_features(specs: FeatureSpecs) -> Features:
    """One row of zeros for every feature of both sides: enough to build a model on.

    >>> specs = FeatureSpecs((), (FeatureSpec("item_id", "id", 9), FeatureSpec("tags", "text", 5, 4)), "implicit", 1.0)
    >>> {name: value.shape for name, value in placeholder_features(specs).items()}
    {'item_id': (1,), 'tags': (1, 4), 'tags_length': (1,)}
    """
    features: Features = {}
    for spec in (*specs.user, *specs.item):
        shape = {"vector": (1, spec.size)}.get(spec.kind, (1, spec.length) if spec.kind in LISTS else (1,))
        dtype = np.float32 if spec.kind in ("number", "vector") else np.int32
        features[spec.name] = np.zeros(shape, dtype)
        if spec.kind in LISTS:
            features[f"{spec.name}_length"] = np.zeros(1, np.int32)
    return features


@keras.saving.register_keras_serializable(package="tfmetarec")
class ListPooling(keras.layers.Layer):
    """Averages the vectors of a list over its real entries: `GlobalAveragePooling1D` with a length.

    A mask would not survive TensorFlow Serving's batching, which pads a short request with its own first
    element; a length does. An empty list gives zeros.

    >>> ListPooling()(ops.array([[[1.0], [3.0], [9.0]]]), ops.array([2])).numpy().tolist()
    [[2.0]]
    """

    def call(self, vectors: Any, length: Any) -> Any:
        length = ops.cast(length, "int32")
        place = ops.arange(ops.shape(vectors)[-2], dtype="int32")
        real = ops.cast(place < length[..., None], vectors.dtype)  # (..., L)
        count = ops.maximum(ops.cast(length, vectors.dtype), 1)
        return ops.sum(vectors * real[..., None], axis=-2) / count[..., None]


@keras.saving.register_keras_serializable(package="tfmetarec")
class FeatureEncoder(keras.layers.Layer):
    """Embeds, pools and concatenates the features of one side, whatever they are.

    Categories and lists become embeddings (lists averaged), numbers and vectors pass as they are. The id and
    `item_level` are left to the model, which treats them apart. Without any feature the output is a
    constant 1, so that layers on top always have something to stand on.

    Args:
        specs: the features, as `FeatureSpec`s or dicts.
        embedding_dim: int, at least 1. Width of each embedding; a small table gets a narrower one.
        seed: int.
        fusion: "concatenate", or what becomes of vectors instead of standing side by side: "gate" mixes them to one
            of twice `embedding_dim`, see `GateFusion`; "gate_all" takes all other features together as one more
            modality. A gated vector counts by its direction, not its length, and is missing if it is all zeros;
            the others are missing if nothing of them is known.
        modality_dropout: float in [0, 1), of the gate; `None`: 0.2 where there is one.

    Call arguments: features dict with leading dimensions `(...)`. Returns `(..., width)`.

    Raises:
        ValueError: if an option is out of range, would be ignored, or there is no vector to fuse.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec | dict],
        embedding_dim: int = 16,
        seed: int = 0,
        fusion: str = "concatenate",
        modality_dropout: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if embedding_dim < 1:
            raise ValueError(f"`embedding_dim` must be at least 1. Received: embedding_dim={embedding_dim}")
        check_fusion(fusion, modality_dropout)
        self.specs = tuple(spec if isinstance(spec, FeatureSpec) else FeatureSpec(**spec) for spec in specs)
        self.embedding_dim, self.seed = embedding_dim, seed
        self.fusion, self.modality_dropout = fusion, modality_dropout
        self.pooling = ListPooling()
        self.embeddings: dict[str, RowSparseEmbedding] = {}
        self.width = 0
        for index, spec in enumerate(self.specs):
            if spec.kind in ("number", "vector"):
                self.width += spec.size
            else:
                dim = min(embedding_dim, max(2, spec.size // 2))
                initializer = keras.initializers.RandomNormal(0.0, 0.1, seed=seed + index)
                table = RowSparseEmbedding(
                    spec.size, dim, initializer, name=f"embedding_of_{re.sub('[^A-Za-z0-9]', '_', spec.name)}_{index}"
                )
                table.build()
                self.embeddings[spec.name] = table
                self.width += dim
        self.gate = self._gate() if fusion != "concatenate" else None
        self.width = self.width or 1
        self.built = True

    def _gate(self) -> GateFusion:
        widths = {spec.name: spec.size for spec in self.specs if spec.kind == "vector"}
        if not widths:
            names = [spec.name for spec in self.specs]
            raise ValueError(
                f"`fusion` needs features that are vectors; see `tfmetarec.transfer.with_vectors`. "
                f"Received: fusion={self.fusion!r}, features {names}"
            )
        others = self.width - sum(widths.values())
        units = 2 * self.embedding_dim
        if self.fusion == "gate_all" and others:
            widths[_OTHERS], others = others, 0
        self.width = others + units
        dropout = 0.2 if self.modality_dropout is None else self.modality_dropout
        return GateFusion(widths, units, dropout, self.seed, name="gate")

    def call(self, features: Features, training: bool = False) -> Any:
        if self.gate is None:
            return self._side_by_side(features, self.specs)
        vectors, present = {}, {}
        for spec in self.specs:
            if spec.kind == "vector":
                vector = ops.cast(features[spec.name], self.compute_dtype)
                vectors[spec.name], present[spec.name] = as_direction(vector), is_present(vector)
        others = [spec for spec in self.specs if spec.kind != "vector"]
        if _OTHERS not in self.gate.widths:
            fused = self.gate(vectors, present, training=training)
            return ops.concatenate([self._side_by_side(features, others), fused], axis=-1) if others else fused
        vectors[_OTHERS] = self._side_by_side(features, others)
        known = [features[f"{spec.name}_length" if spec.kind in LISTS else spec.name] != 0 for spec in others]
        present[_OTHERS] = ops.any(ops.stack(known, axis=-1), axis=-1)
        return self.gate(vectors, present, training=training)

    def _side_by_side(self, features: Features, specs: Sequence[FeatureSpec]) -> Any:
        parts = []
        for spec in specs:
            value = features[spec.name]
            if spec.kind == "number":
                parts.append(ops.cast(value, self.compute_dtype)[..., None])
            elif spec.kind == "vector":
                parts.append(ops.cast(value, self.compute_dtype))
            elif spec.kind in LISTS:
                parts.append(self.pooling(self.embeddings[spec.name](value), features[f"{spec.name}_length"]))
            else:
                parts.append(self.embeddings[spec.name](value))
        if not parts:
            leading = next(value for name, value in features.items() if name in ("user_id", "item_id", "item_level"))
            return ops.ones((*ops.shape(leading), 1), self.compute_dtype)
        return ops.concatenate(parts, axis=-1)

    def get_config(self) -> dict[str, Any]:
        specs = [vars(spec) for spec in self.specs]
        return {
            **super().get_config(),
            "specs": specs,
            "embedding_dim": self.embedding_dim,
            "seed": self.seed,
            "fusion": self.fusion,
            "modality_dropout": self.modality_dropout,
        }


@keras.saving.register_keras_serializable(package="tfmetarec")
class ItemEncoder(keras.layers.Layer):
    """Item features -> item vector and item bias: an embedding of the id plus a tower over the content.

    The two add up, so an item that was never seen still has the vector that its content gives it. During
    training the id is hidden now and then (`id_dropout`), which is what teaches the content to stand alone.

    Args:
        specs: item features, as `FeatureSpec`s or dicts.
        embedding_dim: int, `D`, the width of the vector.
        hidden: ints, widths of the tower's hidden layers.
        dropout: float in [0, 1). On the tower's hidden layers.
        id_dropout: float in [0, 1). Share of training rows whose id is hidden.
        level: float. Starting weight of `item_level` (log popularity, 0 for ratings) in the bias; learned from
            there. Defaults to 1.
        fusion: what becomes of content that is vectors, and `modality_dropout`: see `FeatureEncoder`.
        modality_dropout: float in [0, 1).
        id_width: int, at least 1. Width of the table of ids, such as that of vectors it starts from; a learned
            projection takes its rows to `D`. `None`: a table of width `D`, without a projection.

    Call arguments: features with leading dimensions `(...)`. Without `item_id` they are of items that have no row:
    what row 0 has become stands for the id, as a constant, so that a graph of such items need not hold the table.
    Returns `(..., D + 1)`, the bias last.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec | dict],
        embedding_dim: int = 64,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        id_dropout: float = 0.1,
        level: float = 1.0,
        seed: int = 0,
        fusion: str = "concatenate",
        modality_dropout: float | None = None,
        id_width: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if id_width is not None and id_width < 1:
            raise ValueError(f"`id_width` must be at least 1, or None. Received: id_width={id_width}")
        self.specs = tuple(spec if isinstance(spec, FeatureSpec) else FeatureSpec(**spec) for spec in specs)
        self.embedding_dim, self.hidden, self.dropout = embedding_dim, tuple(hidden), dropout
        self.id_dropout, self.level, self.seed = id_dropout, level, seed
        self.fusion, self.modality_dropout, self.id_width = fusion, modality_dropout, id_width
        size = next(spec.size for spec in self.specs if spec.name == "item_id")
        content = [spec for spec in self.specs if spec.name not in ("item_id", "item_level")]
        self.content = FeatureEncoder(
            content, max(4, embedding_dim // 2), seed, fusion, modality_dropout, name="content"
        )
        self.tower = Tower(self.content.width, embedding_dim, self.hidden, dropout, seed=seed, name="tower")
        initializer = keras.initializers.RandomNormal(0.0, 0.05, seed=seed)
        self.id_vector = RowSparseEmbedding(size, id_width or embedding_dim, initializer, name="id_vector")
        self.id_bias = RowSparseEmbedding(size, 1, embeddings_initializer="zeros", name="id_bias")
        self.content_bias = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="content_bias")
        self.level_weight = self.add_weight((), keras.initializers.Constant(level), name="level_weight")
        self.id_vector.build()
        self.id_bias.build()
        self.content_bias.build((None, self.content.width))
        self.id_projection = None
        if id_width is not None:
            initializer = keras.initializers.GlorotUniform(seed=seed)
            self.id_projection = keras.layers.Dense(
                embedding_dim, use_bias=False, kernel_initializer=initializer, name="id_projection"
            )
            self.id_projection.build((None, id_width))
        self.random = keras.random.SeedGenerator(seed)
        self.width = embedding_dim + 1
        self.built = True

    def call(self, features: Features, training: bool = False) -> Any:
        content = self.content(features, training=training)
        if "item_id" in features:
            rows = features["item_id"]
            if training and self.id_dropout > 0:
                kept = keras.random.uniform(ops.shape(rows), seed=self.random) >= self.id_dropout
                rows = ops.where(kept, rows, ops.zeros_like(rows))
            id_vector, id_bias = self.id_vector(rows), self.id_bias(rows)
        else:
            id_vector, id_bias = (_first_row(table, content.dtype) for table in (self.id_vector, self.id_bias))
        if self.id_projection is not None:
            id_vector = self.id_projection(id_vector) if "item_id" in features else self.id_projection(id_vector[None])
        vector = id_vector + self.tower(content, training=training)
        level = ops.cast(features["item_level"], vector.dtype)[..., None] * self.level_weight
        bias = id_bias + self.content_bias(content) + level
        return ops.concatenate([vector, bias], axis=-1)

    def get_config(self) -> dict[str, Any]:
        names = ["embedding_dim", "hidden", "dropout", "id_dropout", "level", "seed"]
        names += ["fusion", "modality_dropout", "id_width"]
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), "specs": [vars(spec) for spec in self.specs], **own}


def _first_row(table: RowSparseEmbedding, dtype: str) -> Any:
    with tf.init_scope():  # A value, whatever graph is being built.
        row = tf.gather(table.embeddings.value, 0).numpy()
    return ops.convert_to_tensor(row, dtype)


@keras.saving.register_keras_serializable(package="tfmetarec")
class Tower(keras.layers.Layer):
    """Dense layers with ReLU between them and a linear end, for inputs with any leading dimensions.

    Args:
        width: int, of the input.
        units: int, of the output.
        hidden: ints, widths of the hidden layers.
        dropout: float in [0, 1), on the hidden layers.
        output_bias: float. Where the last bias starts.
        seed: int.

    Call arguments: inputs `(..., width)`; `apply`: how a Dense layer runs on its inputs, which is where a learner
    puts each task's own weights. Returns `(..., units)`.
    """

    def __init__(
        self,
        width: int,
        units: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        output_bias: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.width, self.units, self.hidden, self.dropout = width, units, tuple(hidden), dropout
        self.output_bias, self.seed = output_bias, seed
        self.dense, self.drop = [], []
        for index, size in enumerate((*self.hidden, units)):
            last = index == len(self.hidden)
            kind = keras.initializers.GlorotUniform if last else keras.initializers.HeUniform
            layer = keras.layers.Dense(
                size,
                activation=None if last else "relu",
                kernel_initializer=kind(seed=seed + index),
                bias_initializer=keras.initializers.Constant(output_bias if last else 0.0),
                name=f"dense_{index}",
            )
            layer.build((None, (width, *self.hidden)[index]))
            self.dense.append(layer)
            if dropout > 0 and not last:
                self.drop.append(keras.layers.Dropout(dropout, seed=seed + index))
        self.built = True

    def call(self, inputs: Any, training: bool = False, apply: Apply = directly) -> Any:
        outputs = inputs
        for index, layer in enumerate(self.dense):
            outputs = apply(layer, outputs)
            if index < len(self.drop):
                outputs = self.drop[index](outputs, training=training)
        return outputs

    def get_config(self) -> dict[str, Any]:
        names = ("width", "units", "hidden", "dropout", "output_bias", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
