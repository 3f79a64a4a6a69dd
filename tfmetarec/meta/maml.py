"""Model-agnostic meta-learning."""

from typing import Any

import keras

from tfmetarec.meta.fast_weights import Weights, descend
from tfmetarec.meta.learner import MetaLearner, TaskRows


@keras.saving.register_keras_serializable(package="tfmetarec")
class MAML(MetaLearner):
    """Learns weights from which a few gradient steps fit a new user.

    Each task adapts its own copy by gradient descent on its support; the query losses of the adapted copies
    then move the shared starting point, through the inner steps and their second derivatives.

    Args:
        model: `keras.Model`, built. Maps a dict of `(batch, ...)` features to `(batch, 1)` scores.
        inner_steps: int, at least 1. Gradient steps per task. Defaults to 1.
        inner_learning_rate: float, greater than 0. Defaults to 0.01.
        second_order: bool. `False` drops second derivatives (first-order MAML): cheaper, less exact.
        **options: of `MetaLearner`.

    Reference: [Finn et al., 2017](https://arxiv.org/abs/1703.03400), equation 1.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        inner_steps: int = 1,
        inner_learning_rate: float = 0.01,
        second_order: bool = True,
        **options: Any,
    ):
        super().__init__(model, **options)
        check_inner(inner_steps, inner_learning_rate)
        self.inner_steps, self.inner_learning_rate = inner_steps, inner_learning_rate
        self.second_order = second_order

    def adapt_task(self, task: TaskRows, training: bool) -> Weights:
        return descend(
            lambda weights: self.support_loss(weights, task),
            self._adaptable.start(),
            steps=self.inner_steps,
            learning_rate=self.inner_learning_rate,
            second_order=self.second_order and training,
        )

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("inner_steps", "inner_learning_rate", "second_order")}
        return {**super().get_config(), **own}


def check_inner(inner_steps: int, inner_learning_rate: float) -> None:
    """Refuses inner-loop options out of range."""
    if inner_steps < 1:
        raise ValueError(f"`inner_steps` must be at least 1. Received: inner_steps={inner_steps}")
    if not inner_learning_rate > 0:
        raise ValueError(
            f"`inner_learning_rate` must be greater than 0. Received: inner_learning_rate={inner_learning_rate}"
        )
