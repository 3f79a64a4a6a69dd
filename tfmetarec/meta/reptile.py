"""Reptile: move towards where each task's descent ends."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.meta.learner import OuterLoss
from tfmetarec.meta.paths import TaskRows


@keras.saving.register_keras_serializable(package="tfmetarec")
class Reptile(GradientLearner):
    """Moves the starting point towards the weights that each task's own descent reaches.

    `theta <- theta + eps * mean_t(theta_k - theta)`: the difference is handed to the optimizer as a gradient
    (with its sign turned), so `SGD(eps)` is the published update and Adam its scaled form. A task descends on
    its support and query together; there is no second derivative and no inner/outer split.

    What does not adapt (embeddings and encoders) moves by the gradient summed along the same descent, scaled
    by the inner learning rate: the displacement the same `SGD` steps would have given it.

    Args:
        proximal: float, at least 0. Strength of `proximal / 2 * |theta_k - theta|^2`, added to the inner loss
            so that a task cannot run far from the start. Defaults to 0.
        **options: as `GradientLearner`; its rates cannot be learned, since no gradient reaches them.

    Reference: [Nichol et al., 2018](https://arxiv.org/abs/1803.02999), algorithm 2; the proximal term as in
    [Zhou et al., 2019](https://arxiv.org/abs/1907.00877), equation 2.
    """

    def __init__(self, model: keras.Model, *, proximal: float = 0.0, **options: Any):
        super().__init__(model, **options)
        if not proximal >= 0:
            raise ValueError(f"`proximal` must be at least 0. Received: proximal={proximal}")
        if self.learned_rate is not None or isinstance(self.inner_learning_rate, dict):
            raise ValueError("Reptile needs one fixed `inner_learning_rate`: no gradient reaches a learned one.")
        self.proximal = proximal

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        weights = self.descend(rows, training, proximal=self.proximal)[-1]
        return self._path.formed(weights, tf.shape(rows.label)[0])

    def outer_loss(self, support: TaskRows, query: TaskRows) -> OuterLoss:
        together = _together(support, query)
        *points, end = self.descend(together, training=True, second_order=False, proximal=self.proximal)
        tasks = tf.shape(query.label)[0]
        # The encoder's gradient is taken at every point of the descent, not through it.
        along = [
            self._path.losses(
                [tf.stop_gradient(w) for w in self._path.formed(point, tasks)],
                together,
                self.inner_loss or self.task_loss,
                self.shrinkage,
            )[0]
            for point in points
        ]
        objective = tf.reduce_mean(tf.add_n(along)) * self.inner_learning_rate
        for variable, ends in zip(self._cut.variables, self._path.formed(end, tasks), strict=True):
            start = tf.convert_to_tensor(variable.value)
            objective += tf.reduce_sum(start * tf.stop_gradient(start - tf.reduce_mean(ends, 0)))
        loss, scores = self._path.losses(self.adapt_rows(support), query, self.task_loss)
        return OuterLoss(objective, tf.reduce_mean(loss), scores)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "proximal": self.proximal}


def _together(support: TaskRows, query: TaskRows) -> TaskRows:
    """The rows of support and query as one set; a side with one row for the whole task stays as it is."""
    lengths = (support.label.shape[1], query.label.shape[1])

    def joined(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.concat([a, b], axis=1)

    def side(a: Any, b: Any) -> Any:
        shared = all(t.shape[1] == 1 for t in tf.nest.flatten((a, b))) and lengths != (1, 1)
        return a if shared else tf.nest.map_structure(joined, a, b)

    return TaskRows(
        side(support.user, query.user),
        side(support.item, query.item),
        joined(support.label, query.label),
        joined(support.weight, query.weight),
        support.negatives,
    )
