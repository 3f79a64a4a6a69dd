"""MAML made easier to train: learned rates, a loss at every step, second derivatives later."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.meta.learner import OuterLoss
from tfmetarec.meta.paths import TaskRows


@keras.saving.register_keras_serializable(package="tfmetarec")
class MAMLPlusPlus(GradientLearner):
    """MAML with three remedies for the trouble that several inner steps make in training.

    - Every layer has a learned rate of its own at every step.
    - The query loss counts after every step, not only after the last, so that gradients reach early steps directly.
      The weight of all but the last falls linearly to 0 over `annealing_steps`.
    - For the first `first_order_steps` outer steps inner gradients count as constants.

    Args:
        annealing_steps: int, at least 0. Outer steps until only the last inner step's loss counts. Defaults to 1000.
        first_order_steps: int, at least 0. Outer steps without second derivatives. Both derivatives are in one
            graph, so these steps cost what others cost. Defaults to 0.
        learned_rate: as `GradientLearner`. Defaults to "layer".
        rate_per_step: as `GradientLearner`. Defaults to `True`.
        **options: as `MAML`.

    Reference: [Antoniou et al., 2019](https://arxiv.org/abs/1810.09502), section 3: multi-step loss (equation 4),
    derivative-order annealing, per-layer per-step learning rates.
    """

    second_order = True

    def __init__(
        self,
        model: keras.Model,
        *,
        annealing_steps: int = 1000,
        first_order_steps: int = 0,
        learned_rate: str | None = "layer",
        rate_per_step: bool = True,
        **options: Any,
    ):
        super().__init__(model, learned_rate=learned_rate, rate_per_step=rate_per_step, **options)
        for name, value in (("annealing_steps", annealing_steps), ("first_order_steps", first_order_steps)):
            if value < 0:
                raise ValueError(f"`{name}` must be at least 0. Received: {name}={value}")
        self.annealing_steps, self.first_order_steps = annealing_steps, first_order_steps

    def step_weights(self, outer_step: Any) -> tf.Tensor:
        """The weight of the query loss after each inner step, `(inner_steps,)`, summing to 1.

        Example:
        >>> import tfmetarec as tmr
        >>> vocabulary = tmr.data.Vocabulary.fit(tmr.data.load("synthetic", n_users=8, seed=0))
        >>> learner = MAMLPlusPlus(tmr.models.TwoTower(vocabulary, 4), inner_steps=2, annealing_steps=10)
        >>> [learner.step_weights(step).numpy().tolist() for step in (0, 5, 10, 99)]
        [[0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [0.0, 1.0]]
        """
        done = tf.cast(outer_step, keras.config.floatx()) / max(self.annealing_steps, 1)
        done = tf.minimum(done, 1.0) if self.annealing_steps else tf.ones_like(done)
        early = (1.0 - done) / self.inner_steps
        return tf.concat([tf.fill([self.inner_steps - 1], early), [1.0 - (self.inner_steps - 1) * early]], 0)

    def outer_loss(self, support: TaskRows, query: TaskRows) -> OuterLoss:
        outer_step = self.optimizer.iterations.value if getattr(self, "optimizer", None) is not None else 0
        second_order: Any = True
        if self.first_order_steps:
            second_order = tf.cast(outer_step >= self.first_order_steps, keras.config.floatx())
        points = self.descend(support, training=True, second_order=second_order)[1:]
        if not self.annealing_steps:
            points = points[-1:]
        each = [self._path.losses(weights, query, self.task_loss) for weights in points]
        losses = tf.stack([tf.reduce_mean(loss) for loss, _ in each])
        objective = tf.reduce_sum(losses * self.step_weights(outer_step)) if len(each) > 1 else losses[-1]
        return OuterLoss(objective, losses[-1], each[-1][1])

    def get_config(self) -> dict[str, Any]:
        own = {"annealing_steps": self.annealing_steps, "first_order_steps": self.first_order_steps}
        return {**super().get_config(), **own}
