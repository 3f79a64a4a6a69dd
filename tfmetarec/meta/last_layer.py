"""The last layer of a model whose score is linear in that layer's weights, and what those are multiplied with."""

import re
from typing import Any

import keras
import tensorflow as tf

from tfmetarec.meta.adaptable import GraphCut, HeadCut, is_graph, is_plain_dense
from tfmetarec.models.ranker import DecisionLayers
from tfmetarec.models.two_tower import UserTower


class LastLayer:
    """Finds weights in which a model's score is linear: `score = start + phi . change` holds exactly for any change.

    Of a `TwoTower` these are the user's own vector (the last bias of the user tower) and level, with `phi` the item
    vector and a 1; of a `Ranker`, or a functional model that ends in a linear `Dense(1)`, the kernel and bias of
    that last layer, with `phi` its inputs and a 1.

    Args:
        model: `keras.Model`, built.

    Attributes:
        variables: two variables, the last that of the constant 1.
        pattern: regular expression that finds both, as `MetaLearner` takes for `adapted`.
        width: int, `D + 1`, of `phi`.

    Raises:
        ValueError: if the model's score is not linear in its last layer, or the layer is frozen.
    """

    def __init__(self, model: keras.Model):
        self.layer = _last_dense(model)
        self._level = model.head.level if isinstance(getattr(model, "head", None), UserTower) else None
        if self._level is not None:
            self.variables = [self.layer.bias, self._level.kernel]
            self.width = self.layer.units + 1
        else:
            self.variables = [self.layer.kernel, self.layer.bias]
            self.width = self.layer.kernel.shape[0] + 1
        if not all(variable.trainable for variable in self.variables):
            raise ValueError(f"the last layer must be trainable. Received: {self.layer.name!r} with trainable=False")
        self.pattern = "|".join(f"^{re.escape(variable.path)}$" for variable in self.variables)

    def features(self, cut: HeadCut | GraphCut, user: Any, item: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """`phi` of every row, `(T, R, D + 1)` or `(R, D + 1)` where it is common to all tasks, and scores `(T, R)`.

        Args:
            cut: of the model.
            user: encoded users, `(T, 1 or R, ...)`.
            item: encoded items, `(T, 1 or R, ...)`, or `(R, ...)` common to all tasks.
        """
        inputs: list[tf.Tensor] = []

        def apply(layer: keras.layers.Dense, x: tf.Tensor) -> tf.Tensor:
            if layer is self.layer:
                inputs.append(x)
            return layer(x)

        score = cut.score_all(apply, user, item)
        dtype = self.layer.variable_dtype
        if self._level is None:
            phi = tf.cast(inputs[0], dtype)
            return tf.concat([phi, tf.ones_like(phi[..., :1])], -1), score
        phi = tf.cast(tf.concat([item[..., : self.layer.units], item[..., -1:]], -1), dtype)
        if phi.shape.rank == 3 and phi.shape[1] == 1:  # Tasks about an item: one for all rows.
            phi = tf.broadcast_to(phi, [*tf.unstack(tf.shape(score)), self.width])
        return phi, score

    def moved(self, variables: list[keras.Variable], change: tf.Tensor) -> list[tf.Tensor]:
        """Weights `(T, ...)` of `variables`, which are the layer's in any order, after a change `(T, D + 1)`."""
        parts = {id(v): part for v, part in zip(self.variables, (change[:, :-1], change[:, -1:]), strict=True)}
        return [variable.value + tf.reshape(parts[id(variable)], (-1, *variable.shape)) for variable in variables]


def _last_dense(model: keras.Model) -> keras.layers.Dense:
    """The last Dense layer, if nothing but sums stands between its outputs and the score."""
    head = getattr(model, "head", None)
    layer: Any = None
    if isinstance(head, UserTower | DecisionLayers):
        layer = head.tower.dense[-1] if head.activation == "linear" else None
    elif is_graph(model):
        layer = model.outputs[0]._keras_history.operation
    if not is_plain_dense(layer) or layer.activation is not keras.activations.linear or layer.bias is None:
        raise ValueError(
            "`model` must be linear in its last layer: a TwoTower or Ranker with activation='linear', or a functional "
            "model over a dict of features that ends in a linear Dense(1) with a bias. "
            f"Received: {type(model).__name__}"
        )
    return layer
