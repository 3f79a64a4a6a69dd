"""Weights that belong to one task: which they are, how to score with them, how to move them.

Nothing here changes a variable. A model is split into what adapts and what does not, the part that adapts is
run on whatever weights a task has by `stateless_call`, and steps return new weights.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from tfmetarec.tasks.episode import Features

Weights = list[tf.Tensor]


class Adaptable:
    """A Keras model seen as an encoder that stays and a part that adapts.

    A model with `encode_user`, `encode_item` and `head` (see `tfmetarec.models.TwoTower`) is encoded once for
    all its rows, and only the head runs per task. Any other model runs whole: it must map a dict of `(R, ...)`
    features to `(R, 1)` scores, and everything trainable in it adapts except embeddings.

    Layers that behave differently in training (dropout, batch normalisation) run in inference mode in the part
    that adapts.

    Args:
        model: `keras.Model`, built.
        adapted: regular expression; the variables whose path it finds adapt. `None` for the rule above;
            "last" for the last layer with weights, in the order of `trainable_variables`, embeddings apart.

    Raises:
        ValueError: if the model is not built, or nothing matches.
    """

    def __init__(self, model: keras.Model, adapted: str | None = None):
        if not model.built:
            raise ValueError("`model` must be built. Call it once on a batch of features, or give it an input shape.")
        self.model = model
        self.two_part = all(hasattr(model, name) for name in ("encode_user", "encode_item", "head"))
        self.inner: keras.layers.Layer = model.head if self.two_part else model
        variables = self.inner.trainable_variables
        self._chosen = _choose(self.inner, variables, adapted)
        # A functional model warns about features that it has no input for.
        inputs = getattr(model, "_inputs_struct", None)
        self._inputs = tuple(inputs) if isinstance(inputs, dict) else None

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that adapt, i.e. the shared starting point."""
        variables = self.inner.trainable_variables
        return [variables[index] for index in self._chosen]

    def start(self) -> Weights:
        """The starting point as tensors, the same for every task."""
        return [tf.convert_to_tensor(variable.value) for variable in self.variables]

    def encode_user(self, features: Features, training: bool) -> Any:
        return self.model.encode_user(features, training=training) if self.two_part else features

    def encode_item(self, features: Features, training: bool) -> Any:
        return self.model.encode_item(features, training=training) if self.two_part else features

    def score(self, weights: Weights, user: Any, item: Any) -> tf.Tensor:
        """Scores `(R,)` of one task's rows under its own weights.

        Args:
            weights: as `start` returns them.
            user: encoded user(s) with leading dimension 1 or `R`.
            item: encoded items with leading dimension 1 or `R`.
        """
        if self.two_part:
            return self._run(weights, user, item)
        rows = tf.maximum(tf.shape(user["user_id"])[0], tf.shape(item["item_id"])[0])
        features = {}
        for value in (user, item):
            for name, feature in value.items():
                features[name] = tf.broadcast_to(feature, tf.concat([[rows], tf.shape(feature)[1:]], 0))
        if self._inputs is not None:
            features = {name: features[name] for name in self._inputs}
        return tf.reshape(self._run(weights, features), [-1])

    def query(self, weights: Weights, user: Any) -> tf.Tensor:
        """The query vector `(1, D)` of one adapted user, for a model whose score is a dot product."""
        return self._run(weights, user)

    def activate(self, products: tf.Tensor) -> tf.Tensor:
        """Scores from the dot products of queries and items."""
        return keras.activations.get(self.inner.activation)(products)

    @property
    def is_retrieval(self) -> bool:
        """Whether a score is the dot product of `query` with the encoded item, through an activation."""
        return self.two_part and getattr(self.model, "is_retrieval", False)

    def _run(self, weights: Weights, *inputs: Any) -> tf.Tensor:
        everything = [tf.convert_to_tensor(v.value) for v in self.inner.trainable_variables]
        for index, weight in zip(self._chosen, weights, strict=True):
            everything[index] = weight
        fixed = [v.value for v in self.inner.non_trainable_variables]
        outputs, _ = self.inner.stateless_call(everything, fixed, *inputs)
        return outputs


def gradient_step(
    loss_fn: Callable[[Weights], tf.Tensor], weights: Weights, learning_rate: Any, *, second_order: bool
) -> Weights:
    """Returns `weights` moved one step down `loss_fn`; the given weights stay as they were."""
    with tf.GradientTape() as tape:
        tape.watch(weights)
        loss = loss_fn(weights)
    gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
    gradients = [tf.convert_to_tensor(g) for g in gradients]  # Embeddings give sparse slices.
    if not second_order:
        gradients = [tf.stop_gradient(g) for g in gradients]
    return [w - learning_rate * g for w, g in zip(weights, gradients, strict=True)]


def descend(
    loss_fn: Callable[[Weights], tf.Tensor],
    weights: Weights,
    *,
    steps: int,
    learning_rate: Any,
    second_order: bool = True,
) -> Weights:
    """`steps` gradient steps, unrolled: one graph for training and for serving.

    >>> weights = descend(lambda w: w[0] ** 2, [tf.constant(1.0)], steps=2, learning_rate=0.25)
    >>> float(weights[0])
    0.25
    """
    for _ in range(steps):
        weights = gradient_step(loss_fn, weights, learning_rate, second_order=second_order)
    return weights


def _choose(layer: keras.layers.Layer, variables: list[keras.Variable], adapted: str | None) -> list[int]:
    parts = layer._flatten_layers()
    embeddings = _ids(v for part in parts if isinstance(part, keras.layers.Embedding) for v in part.trainable_variables)
    chosen = [index for index, variable in enumerate(variables) if id(variable) not in embeddings]
    if adapted == "last" and chosen:
        # The innermost owner of the last variable. `_flatten_layers` itself keeps no order to rely on.
        last = variables[chosen[-1]]
        owners = [part for part in parts if id(last) in _ids(part.trainable_variables)]
        own = _ids(min(owners, key=lambda part: len(part.trainable_variables)).trainable_variables)
        chosen = [index for index, variable in enumerate(variables) if id(variable) in own]
    elif adapted not in (None, "last"):
        chosen = [index for index, variable in enumerate(variables) if re.search(adapted, variable.path)]
    if not chosen:
        paths = ", ".join(variable.path for variable in variables)
        raise ValueError(f"`adapted` must match at least one trainable variable of: {paths}. Received: {adapted!r}")
    return chosen


def _ids(variables: Iterable[keras.Variable]) -> set[int]:
    return {id(variable) for variable in variables}
