"""Adapting by gradient descent on the support: what MAML and its relatives have in common."""

from typing import Any

import keras

from tfmetarec.meta.fast_weights import Weights, descend
from tfmetarec.meta.learner import MetaLearner, TaskRows


class GradientLearner(MetaLearner):
    """Adapts by a few steps of gradient descent on the support.

    Args:
        model: `keras.Model`, built. Maps a dict of `(batch, ...)` features to `(batch, 1)` scores.
        inner_steps: int, at least 1. Gradient steps per task. Defaults to 1.
        inner_learning_rate: float, greater than 0. Defaults to 0.01.
        shrinkage: float, at least 0. The inner loss is the sum over the support divided by its length plus
            this number, as if so many more interactions agreed with the starting point: one interaction then
            moves a user less than twenty do. Defaults to 0, the plain mean of the papers.
        **options: of `MetaLearner`.

    Raises:
        ValueError: for an option out of range.
    """

    second_order = False  # Whether the outer gradient sees through the inner steps.

    def __init__(
        self,
        model: keras.Model,
        *,
        inner_steps: int = 1,
        inner_learning_rate: float = 0.01,
        shrinkage: float = 0.0,
        **options: Any,
    ):
        super().__init__(model, **options)
        if inner_steps < 1:
            raise ValueError(f"`inner_steps` must be at least 1. Received: inner_steps={inner_steps}")
        if not inner_learning_rate > 0:
            raise ValueError(
                f"`inner_learning_rate` must be greater than 0. Received: inner_learning_rate={inner_learning_rate}"
            )
        if not shrinkage >= 0:
            raise ValueError(f"`shrinkage` must be at least 0. Received: shrinkage={shrinkage}")
        self.inner_steps, self.inner_learning_rate, self.shrinkage = (
            inner_steps,
            inner_learning_rate,
            shrinkage,
        )

    def adapt_task(self, task: TaskRows, training: bool) -> Weights:
        return descend(
            lambda weights: self.support_loss(weights, task, self.shrinkage),
            self._adaptable.start(),
            steps=self.inner_steps,
            learning_rate=self.inner_learning_rate,
            second_order=self.second_order and training,
        )

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("inner_steps", "inner_learning_rate", "shrinkage")}
        return {**super().get_config(), **own}
