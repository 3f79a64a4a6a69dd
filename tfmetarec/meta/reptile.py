"""Reptile: move towards where each task's descent ends."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.meta.fast_weights import Weights, gradient_step
from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.meta.learner import TaskRows, is_shared
from tfmetarec.tasks.episode import Episode


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
        (others): as `MAML`.

    Reference: [Nichol et al., 2018](https://arxiv.org/abs/1803.02999), algorithm 2; the proximal term as in
    [Zhou et al., 2019](https://arxiv.org/abs/1907.00877), equation 2.
    """

    def __init__(self, model: keras.Model, *, proximal: float = 0.0, **options: Any):
        super().__init__(model, **options)
        if not proximal >= 0:
            raise ValueError(f"`proximal` must be at least 0. Received: proximal={proximal}")
        self.proximal = proximal

    def adapt_task(self, task: TaskRows, training: bool) -> Weights:
        weights = self._adaptable.start()
        for _ in range(self.inner_steps):
            weights = self._step(task, weights)
        return weights

    def meta_gradients(self, episode: Episode) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        adapted = {id(variable) for variable in self._adaptable.variables}
        others = [variable for variable in self.trainable_variables if id(variable) not in adapted]
        with tf.GradientTape() as tape:
            task = self._together(episode)
            negatives = self._encode_negatives(episode.support_negatives, True) if episode.support_negatives else None

            def along_the_descent(rows: TaskRows) -> tuple[Weights, tf.Tensor]:
                weights, total = self._adaptable.start(), 0.0
                for _ in range(self.inner_steps):
                    # The encoder's gradient is taken at every point of the descent, not through it.
                    total += self.support_loss([tf.stop_gradient(w) for w in weights], rows, self.shrinkage)
                    weights = self._step(rows, weights)
                return [tf.stop_gradient(w) for w in weights], total

            ends, losses = self._map(along_the_descent, task, negatives)
            summed = tf.reduce_mean(losses) * self.inner_learning_rate
            summed = tf.add_n([summed, *self.model.losses])
        gradients = tape.gradient(summed, [v.value for v in others], unconnected_gradients="zero")
        by_variable = {id(variable): gradient for variable, gradient in zip(others, gradients, strict=True)}
        for variable, end in zip(self._adaptable.variables, ends, strict=True):
            by_variable[id(variable)] = variable.value - tf.reduce_mean(end, axis=0)
        loss, scores = self.query_loss(episode, training=False)
        return loss, [by_variable[id(variable)] for variable in self.trainable_variables], scores

    def _step(self, task: TaskRows, weights: Weights) -> Weights:
        start = self._adaptable.start()

        def loss(weights: Weights) -> tf.Tensor:
            value = self.support_loss(weights, task, self.shrinkage)
            if self.proximal == 0:
                return value
            distance = tf.add_n([tf.reduce_sum((w - s) ** 2) for w, s in zip(weights, start, strict=True)])
            return value + 0.5 * self.proximal * distance

        return gradient_step(loss, weights, self.inner_learning_rate, second_order=False)

    def _together(self, episode: Episode) -> TaskRows:
        """The rows of support and query as one set; a side with one entry per task stays as it is."""
        support, query = self._task_rows(episode.support, True), self._task_rows(episode.query, True)

        def joined(a: Any, b: Any) -> Any:
            return tf.nest.map_structure(lambda x, y: tf.concat([x, y], axis=1), a, b)

        return TaskRows(
            support.user if is_shared(episode.support.user) else joined(support.user, query.user),
            support.item if is_shared(episode.support.item) else joined(support.item, query.item),
            joined(support.label, query.label),
            joined(support.weight, query.weight),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "proximal": self.proximal}
