"""Plain training, then gradient steps on the support: the honest rival of every meta-learner."""

import keras
import tensorflow as tf

from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.meta.learner import OuterLoss
from tfmetarec.meta.paths import TaskRows


@keras.saving.register_keras_serializable(package="tfmetarec")
class FineTuning(GradientLearner):
    """Trains one model on everybody as usual, and fine-tunes it on a new user's support.

    Training never adapts: the loss is that of the unadapted model on support and query together, so the rival
    sees exactly the interactions that a meta-learner sees. Only at adaptation are there gradient steps.

    Args: as `MAML`.

    Reference: the fine-tuning baseline of [Chen et al., 2019](https://arxiv.org/abs/1904.04232), section 3.2.
    """

    def outer_loss(self, support: TaskRows, query: TaskRows) -> OuterLoss:
        start = self._path.start()
        of_support, _ = self._path.losses(start, support, self.task_loss)
        of_query, scores = self._path.losses(start, query, self.task_loss)
        loss = tf.reduce_mean(of_query)
        return OuterLoss(0.5 * (loss + tf.reduce_mean(of_support)), loss, scores)
