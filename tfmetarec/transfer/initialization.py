"""Embedding tables that start from vectors of elsewhere, and stay frozen for a while."""

from typing import Any

import keras
import numpy as np

from tfmetarec.data import Vocabulary
from tfmetarec.data.errors import nearest_name
from tfmetarec.transfer.pretrained import ItemVectors, vectors_of_catalogue


def initialize_embedding(
    layer: keras.layers.Embedding,
    vectors: ItemVectors | np.ndarray,
    vocabulary: Vocabulary | None = None,
    *,
    scale: float | None = None,
    frozen: bool = False,
) -> None:
    """Writes vectors into an embedding table; rows without one become zeros, row 0 ("never seen") among them.

    Vectors as wide as the table are written as they are. Wider ones are reduced to their principal components (the
    mean taken off), narrower ones get zeros appended. For a learned projection instead build the model with
    `id_width=vectors.width`.

    Args:
        layer: built `keras.layers.Embedding` (a `RowSparseEmbedding` is one), such as `model.item_encoder.id_vector`.
        vectors: `ItemVectors`, by raw id; or an array `(rows, D)` with a row for each of the table.
        vocabulary: `Vocabulary` whose rows the table has; needed for `ItemVectors`.
        scale: float, greater than 0. Root mean square of the entries of rows that have a vector; a model's own tables
            start from about 0.05. `None` keeps the vectors as long as they are. Defaults to `None`.
        frozen: bool. Never train the table. Set it before `compile`; to train it later see `Thaw`.

    Raises:
        ValueError: if the sizes differ, an option is out of range, or no row has a vector.

    Example:
    >>> table = keras.layers.Embedding(3, 2)
    >>> table.build()
    >>> initialize_embedding(table, np.array([[0.0], [0.5], [-1.0]]))
    >>> table.embeddings.numpy().tolist()
    [[0.0, 0.0], [0.5, 0.0], [-1.0, 0.0]]
    """
    if not isinstance(layer, keras.layers.Embedding) or not layer.built:
        raise ValueError(f"`layer` must be a built `keras.layers.Embedding`. Received: {layer!r}")
    if scale is not None and scale <= 0:
        raise ValueError(f"`scale` must be greater than 0, or None. Received: scale={scale}")
    if isinstance(vectors, ItemVectors):
        if vocabulary is None:
            raise ValueError("`vocabulary` is needed to know the rows of `ItemVectors`. Received: vocabulary=None")
        if vocabulary.n_items != layer.input_dim:
            raise ValueError(
                f"`layer` must have a row for each of the {vocabulary.n_items:,} rows of `vocabulary`. "
                f"Received: {layer.input_dim:,} rows"
            )
        vectors = vectors_of_catalogue(vectors, vocabulary)
    elif vocabulary is not None:
        raise ValueError("`vocabulary` is for `ItemVectors`; an array has its rows in order already.")
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != layer.input_dim:
        raise ValueError(
            f"`vectors` must have a row for each of the {layer.input_dim:,} of `layer`. Received: shape {vectors.shape}"
        )
    known = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    if not known.any():
        raise ValueError(f"`vectors` must have a row that is not all zeros. Received: shape {vectors.shape}")
    rows = vectors[known]
    if rows.shape[1] > layer.output_dim:
        rows = principal_components(rows, layer.output_dim)
    if scale is not None:
        rows = rows * (scale / np.sqrt(np.mean(np.square(rows))))
    table = np.zeros((layer.input_dim, layer.output_dim), np.float32)
    table[known, : rows.shape[1]] = rows
    layer.embeddings.assign(table)
    if frozen:
        layer.trainable = False


def principal_components(vectors: np.ndarray, width: int) -> np.ndarray:
    """Vectors `(N, D)` in the `width` directions along which they differ most, `(N, width)`, the mean taken off.

    >>> principal_components(np.array([[3.0, 4.0], [-3.0, -4.0]]), 1).round(3).tolist()
    [[5.0], [-5.0]]
    """
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(np.asarray(centred.T @ centred, np.float64))
    directions = directions[:, ::-1][:, :width]
    # A direction has no sign of its own; without a rule it would depend on the machine.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return centred @ (directions * np.sign(largest)).astype(vectors.dtype)


class Thaw(keras.callbacks.Callback):
    """Keeps a layer as it is for the first epochs, then trains it with the rest.

    Compile with the layer trainable, so that the optimizer knows its weights; the callback freezes it when training
    begins. Afterwards the layer is as trainable as it was before.

    Args:
        layer: the layer, or its name if only one layer in the model has it.
        after: int, at least 1. How many epochs it is frozen, counted from the first one ever (`initial_epoch` counts).

    Raises:
        ValueError: if `after` is out of range; when training begins, if the model is not built, there is no such layer,
            it has no trainable weights, or the optimizer does not know them.

    Example:
    >>> table = keras.layers.Embedding(3, 1, name="table")
    >>> model = keras.Sequential([keras.Input((), dtype="int32"), table, keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> rows, labels = np.array([1, 2]), np.array([1.0, 2.0])
    >>> history = model.fit(rows, labels, epochs=2, callbacks=[Thaw("table", after=1)], verbose=0)
    """

    def __init__(self, layer: keras.layers.Layer | str, after: int):
        super().__init__()
        if after < 1:
            raise ValueError(f"`after` must be at least 1. Received: after={after}")
        self.layer, self.after = layer, after
        self._frozen: keras.layers.Layer | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        layer = self._found()
        if not layer.trainable or not layer.trainable_variables:
            raise ValueError(
                f"`layer` must be trainable when training begins; `Thaw` freezes it itself. Received: {layer.name!r}"
            )
        optimizer = self.model.optimizer
        if not optimizer.built:
            if not self.model.built:
                raise ValueError(
                    "the model must be built before `Thaw` freezes a part of it: call it on a batch first."
                )
            optimizer.build(self.model.trainable_variables)
        known = {id(variable) for variable in optimizer._trainable_variables}
        unknown = [variable.path for variable in layer.trainable_variables if id(variable) not in known]
        if unknown:
            raise ValueError(
                "`layer` must be trainable when the model is compiled, so that the optimizer knows its weights. "
                f"Received: {layer.name!r}, whose {unknown[0]!r} it does not know"
            )
        self._frozen = layer
        self._set(layer, trainable=False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._frozen is not None and epoch >= self.after:
            self._thaw()

    def on_train_end(self, logs: Any = None) -> None:
        if self._frozen is not None:
            self._thaw()

    def _thaw(self) -> None:
        layer, self._frozen = self._frozen, None
        self._set(layer, trainable=True)

    def _set(self, layer: Any, trainable: bool) -> None:
        layer.trainable = trainable
        # Its graph has the weights that were trainable when it was traced.
        self.model.make_train_function(force=True)

    def _found(self) -> keras.layers.Layer:
        layers = self.model._flatten_layers(include_self=False)
        if not isinstance(self.layer, str):
            if not any(layer is self.layer for layer in layers):
                raise ValueError(f"`layer` must be a layer of the model. Received: {self.layer.name!r}")
            return self.layer
        found = [layer for layer in layers if layer.name == self.layer]
        if len(found) != 1:
            names = sorted({layer.name for layer in layers})
            raise ValueError(
                f"`layer` must be the name of exactly one layer{nearest_name(self.layer, names)}. "
                f"Received: {self.layer!r}, which {len(found)} layers have, of {names}"
            )
        return found[0]
