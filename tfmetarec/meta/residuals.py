"""What the starting point did not know about the support."""

from typing import Any

import tensorflow as tf

from tfmetarec.meta import losses
from tfmetarec.meta.paths import TaskRows


def residuals(
    loss: Any, rows: TaskRows, score: tf.Tensor, negative_score: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """How far, and in which direction, each row asks its score to move.

    Minus the derivative by the score of the loss summed over the support. For squared error that is
    `2 (label - score)`. For the sampled softmax an interaction has `1 - p`, with `p` the probability that its score
    gave it among the negatives, and each negative has minus the probability that it got instead: both are the
    residuals of the softmax, and a task's sum to 0.

    Args:
        loss: of `losses`.
        rows: the support of `T` tasks.
        score: `(T, R)`.
        negative_score: `(T, P)`, where `rows` has negatives.

    Returns:
        Residuals of the rows `(T, R)`, 0 for padding, and of the negatives `(T, P)` or `None`.
    """
    score, negatives = tf.cast(score, rows.label.dtype), None
    with tf.GradientTape() as tape:
        tape.watch(score)
        if rows.negatives is not None:
            negative_score = tf.cast(negative_score, rows.label.dtype)
            tape.watch(negative_score)
            negatives = losses.NegativeRows(negative_score, rows.negatives.log_expected, rows.negatives.weight)
        total = tf.reduce_sum(loss(losses.Rows(rows.label, score, rows.weight), negatives))
    count = tf.reduce_sum(rows.weight, 1, keepdims=True)  # The loss is a mean over them.
    gradients = tape.gradient(total, [score, negative_score] if negatives else [score], unconnected_gradients="zero")
    found = [-count * gradient for gradient in gradients]
    return found[0], found[1] if negatives else None
