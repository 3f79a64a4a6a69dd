"""Plain training, then gradient steps on the support: the honest rival of every meta-learner."""

import keras
import tensorflow as tf

from tfmetarec.meta.inner_loop import GradientLearner
from tfmetarec.tasks.episode import Episode


@keras.saving.register_keras_serializable(package="tfmetarec")
class FineTuning(GradientLearner):
    """Trains one model on everybody as usual, and fine-tunes it on a new user's support.

    Training never adapts: the loss is that of the unadapted model on support and query together, so the rival
    sees exactly the interactions that a meta-learner sees. Only at adaptation are there gradient steps.

    Args: as `MAML`.

    Reference: the fine-tuning baseline of [Chen et al., 2019](https://arxiv.org/abs/1904.04232), section 3.2.
    """

    def meta_gradients(self, episode: Episode) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape() as tape:
            tasks = tf.shape(episode.query.label)[0]
            weights = [tf.broadcast_to(w, tf.concat([[tasks], tf.shape(w)], 0)) for w in self._adaptable.start()]
            loss, scores = self._query_loss_under(weights, episode, training=True)
            as_query = episode._replace(query=episode.support, query_negatives=episode.support_negatives)
            support_loss, _ = self._query_loss_under(weights, as_query, training=True)
            total = tf.add_n([0.5 * (loss + support_loss), *self.model.losses])
        variables = [variable.value for variable in self.trainable_variables]
        return loss, tape.gradient(total, variables, unconnected_gradients="zero"), scores
