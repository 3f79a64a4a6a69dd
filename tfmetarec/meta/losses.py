"""Losses over the rows of one task, with padding weighted out.

A task loss takes the labels, scores and weights of `R` rows and, for implicit feedback, the scores of `P`
negatives, with any leading dimensions for tasks; it returns one number a task. It is zero, with zero gradient, where
no row has weight, so a task without support stays exactly where it was.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Rows(NamedTuple):
    """The rows of a task: label, score and weight, each `(..., R)`."""

    label: tf.Tensor
    score: tf.Tensor
    weight: tf.Tensor


class NegativeRows(NamedTuple):
    """The negatives of a task, each `(..., P)`: score, logarithm of the expected draws, and weight."""

    score: tf.Tensor
    log_expected: tf.Tensor
    weight: tf.Tensor


def weighted_mean(values: tf.Tensor, weight: tf.Tensor, shrinkage: float = 0.0) -> tf.Tensor:
    """Mean of `values` under `weight` over the last axis, as if `shrinkage` more had value 0; 0 without weight.

    >>> float(weighted_mean(tf.constant([1.0, 5.0]), tf.constant([3.0, 1.0])))
    2.0
    >>> float(weighted_mean(tf.constant([1.0, 5.0]), tf.constant([3.0, 1.0]), shrinkage=4.0))
    1.0
    """
    # Shares first: they are no function of the weights that adapt, and so are the same at every step.
    share = tf.math.divide_no_nan(weight, tf.reduce_sum(weight, -1, keepdims=True) + shrinkage)
    if values.shape.is_fully_defined() or values.shape.rank != share.shape.rank:
        return tf.reduce_sum(values * share, -1)
    return _weighted_sum(values, share)


# In a served graph rows and tasks are of any number, and TensorFlow's own derivatives compute at every step which
# dimensions were broadcast, which is most of their work there. Of two tensors of equal shape, none were.


@tf.custom_gradient
def _weighted_sum(values: tf.Tensor, share: tf.Tensor) -> Any:
    """The sum of `values * share` over the last axis."""

    def gradient(signal: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        signal = tf.expand_dims(signal, -1)
        return signal * share, signal * values

    return tf.reduce_sum(values * share, -1), gradient


@tf.custom_gradient
def _squared_error(label: tf.Tensor, score: tf.Tensor) -> Any:
    error = score - label

    def gradient(signal: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        by_score = 2.0 * signal * error
        return -by_score, by_score

    return error * error, gradient


@keras.saving.register_keras_serializable(package="tfmetarec")
class SampledSoftmax:
    """Cross-entropy of each positive against sampled negatives, corrected for how they were drawn.

    `-log(exp(s) / (exp(s) + sum_j exp(s_j - log E_j)))`, where `E_j` is how often the sampler was expected to
    draw item `j`. The corrected sum estimates the one over the whole catalogue, so popular items are not
    held down for having been drawn often.

    Args:
        temperature: float, greater than 0. Scores are divided by it. Defaults to 1.

    Reference: [Bengio & Senécal, 2008](https://doi.org/10.1109/TNN.2007.912312), equation 8;
    [Yi et al., 2019](https://doi.org/10.1145/3298689.3346996), equation 3.
    """

    name = "sampled_softmax"

    def __init__(self, temperature: float = 1.0):
        if temperature <= 0:
            raise ValueError(f"`temperature` must be greater than 0. Received: temperature={temperature}")
        self.temperature = temperature

    def __call__(self, rows: Rows, negatives: NegativeRows | None, shrinkage: float = 0.0) -> tf.Tensor:
        if negatives is None:
            raise ValueError("the loss 'sampled_softmax' needs negatives, and the episodes have none.")
        corrected = negatives.score / self.temperature - negatives.log_expected
        corrected = tf.where(negatives.weight > 0, corrected, -1e9)
        score = rows.score / self.temperature
        total = tf.math.reduce_logsumexp(corrected, axis=-1, keepdims=True)
        # -log(exp(score) / (exp(score) + exp(total))) = log(1 + exp(total - score))
        return weighted_mean(tf.nn.softplus(total - score), rows.weight, shrinkage)

    def get_config(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SampledSoftmax":
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfmetarec")
class RowLoss:
    """Any Keras loss, row by row: negatives count as rows with label 0, half of the whole loss.

    Args:
        loss: name, function or instance, as `keras.losses.get` takes it.
    """

    def __init__(self, loss: Any):
        self.loss = keras.losses.get(loss)
        self.name = getattr(self.loss, "name", None) or getattr(self.loss, "__name__", "loss")
        # By what it is: a loss of somebody's own may have any name.
        self._is_squared = (
            self.loss is keras.losses.mean_squared_error or type(self.loss) is keras.losses.MeanSquaredError
        )

    def __call__(self, rows: Rows, negatives: NegativeRows | None, shrinkage: float = 0.0) -> tf.Tensor:
        value = weighted_mean(self._each(rows.label, rows.score), rows.weight, shrinkage)
        if negatives is None:
            return value
        contrast = weighted_mean(self._each(tf.zeros_like(negatives.score), negatives.score), negatives.weight)
        evidence = weighted_mean(tf.ones_like(rows.weight), rows.weight, shrinkage)  # 0 without any rows
        return 0.5 * (value + contrast * evidence)

    def _each(self, label: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        if self._is_squared:  # Of one value: Keras's own takes a mean, and ten operations for it.
            label = tf.cast(label, score.dtype)
            if score.shape.is_fully_defined() or score.shape.rank != label.shape.rank:
                return tf.math.squared_difference(label, score)
            return _squared_error(label, score)
        function: Callable = self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss
        return function(tf.expand_dims(label, -1), tf.expand_dims(score, -1))

    def get_config(self) -> dict[str, Any]:
        return {"loss": keras.losses.serialize(self.loss)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RowLoss":
        return cls(config["loss"])


def resolve(loss: Any, feedback: str) -> SampledSoftmax | RowLoss:
    """The task loss behind what `compile` was given; `None` chooses by the kind of feedback."""
    if loss is None:
        loss = "sampled_softmax" if feedback == "implicit" else "mean_squared_error"
    if isinstance(loss, SampledSoftmax | RowLoss):
        return loss
    return SampledSoftmax() if loss == "sampled_softmax" else RowLoss(loss)
