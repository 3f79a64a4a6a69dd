"""Model-agnostic meta-learning."""

import keras

from tfmetarec.meta.inner_loop import GradientLearner


@keras.saving.register_keras_serializable(package="tfmetarec")
class MAML(GradientLearner):
    """Learns weights from which a few gradient steps fit a new user.

    Each task adapts its own copy by gradient descent on its support; the query losses of the adapted copies
    then move the shared starting point, through the inner steps and their second derivatives.

    Args:
        model: `keras.Model`, built. Maps a dict of `(batch, ...)` features to `(batch, 1)` scores.
        inner_steps: int, at least 1. Gradient steps per task. Defaults to 1.
        inner_learning_rate: float, greater than 0. Defaults to 0.01.
        **options: of `GradientLearner` and `MetaLearner`.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> episodes = tmr.tasks.user_episodes(data, vocabulary, support=(0, 5), query=5, negatives=20)
    >>> learner = MAML(tmr.models.TwoTower(vocabulary, 8), inner_steps=2, inner_learning_rate=0.1)
    >>> learner.compile(optimizer="adam")
    >>> history = learner.fit(episodes, epochs=1, verbose=0)

    Reference: [Finn et al., 2017](https://arxiv.org/abs/1703.03400), equation 1.
    """

    second_order = True
