"""Prototypes of what a user liked and disliked, as a change of the model's last layer."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.meta.last_layer import LastLayer
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import TaskRows
from tfmetarec.meta.residuals import residuals


@keras.saving.register_keras_serializable(package="tfmetarec")
class PrototypicalNetwork(MetaLearner):
    """Moves a user's scores towards what resembles the items they liked, away from what resembles those they did not.

    With `phi` the inputs of the model's last layer (the item vector of a `TwoTower`; a constant 1 stands for the bias),
    `c+` the prototype of the liked and `c-` of the disliked, an item's score moves by

        temperature / 2 * (|phi - c-|^2 - |phi - c+|^2),

    which is linear in `phi` and so nothing but new weights of that layer, found without a gradient step:
    `temperature * (c+ - c-)` and, for the bias, `temperature / 2 * (|c-|^2 - |c+|^2)` more.

    A row belongs to both classes softly, by its residual `r` under the starting point (see `residuals`): what was rated
    better than expected is liked by so much, what was rated worse is disliked. With implicit feedback the support is
    liked, and disliked is what the starting point would have put in its place, among the negatives. A prototype is a
    mean

        c+ = (sum max(r, 0) phi + shrinkage * g) / (sum max(r, 0) + shrinkage),    c- with max(-r, 0),

    that begins, for both classes, at the same learned point `g`: a class without rows is there, a user without
    support stays where the starting point is, and little evidence moves little. Weighted so, the change is a
    direction in which the loss of the support falls: `sum r * change = temperature / 2 * M * |c+ - c-|^2`, with `M` the
    whole weight of both classes.

    Args:
        model: `keras.Model`, built: a `TwoTower` or `Ranker` with linear activation, or a functional model over a dict
            of features that ends in a linear `Dense(1)` with a bias. Only that layer adapts (of a `TwoTower`, the
            user's own vector and level).
        temperature: float, greater than 0. Where the temperature starts; it is learned, as a logarithm. Defaults to 1.
        shrinkage: float, greater than 0. Where the weight of `g` starts, in rows of residual 1; it is learned, as a
            logarithm. Defaults to 1.
        **options: of `MetaLearner`, except `adapted`.

    Raises:
        ValueError: for an option out of range, or a model whose score is not linear in its last layer.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> episodes = tmr.tasks.user_episodes(data, vocabulary, support=(0, 5), query=5, negatives=20)
    >>> learner = PrototypicalNetwork(tmr.models.TwoTower(vocabulary, 8))
    >>> learner.compile(optimizer="adam")
    >>> history = learner.fit(episodes, epochs=1, verbose=0)

    Reference: [Snell et al., 2017](https://arxiv.org/abs/1703.05175), equation 1 and section 2.4 (equation 8).
    """

    def __init__(self, model: keras.Model, *, temperature: float = 1.0, shrinkage: float = 1.0, **options: Any):
        for name, value in (("temperature", temperature), ("shrinkage", shrinkage)):
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be greater than 0 and finite. Received: {name}={value}")
        if (adapted := options.pop("adapted", None)) is not None:
            raise ValueError(
                f"`adapted` cannot be chosen: only the last layer has prototypes. Received: adapted={adapted!r}"
            )
        last = LastLayer(model)
        super().__init__(model, adapted=last.pattern, **options)
        self.adapted = None  # The pattern follows from the model.
        self.temperature, self.shrinkage, self._last = temperature, shrinkage, last
        start = {"log_temperature": temperature, "log_shrinkage": shrinkage}
        self._log_temperature, self._log_shrinkage = (
            self.add_weight((), keras.initializers.Constant(float(np.log(value))), name=name)
            for name, value in start.items()
        )
        self._global = self.add_weight((last.width,), "zeros", name="global_prototype")

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        phi, score = self._last.features(self._cut, rows.user, rows.item)
        others = (None, None)
        if rows.negatives is not None:
            others = self._last.features(self._cut, rows.user, rows.negatives.item)
        # Measured: with all negatives disliked alike, adapting does better where all items are equally popular and
        # worse on real purchases. One temperature for each coordinate does no better than one for all.
        residual, other_residual = residuals(self.task_loss, rows, score, others[1])
        liked = self._prototype(residual, phi, other_residual, others[0])
        disliked = self._prototype(-residual, phi, None if other_residual is None else -other_residual, others[0])
        temperature = tf.exp(tf.convert_to_tensor(self._log_temperature.value))
        level = tf.reduce_sum(disliked**2 - liked**2, 1, keepdims=True) / 2
        change = liked - disliked
        change = temperature * tf.concat([change[:, :-1], change[:, -1:] + level], 1)
        return self._last.moved(self.adapted_variables, change)

    def _prototype(self, residual: Any, phi: tf.Tensor, other_residual: Any, others: Any) -> tf.Tensor:
        """The mean `(T, D + 1)` of features, weighted by positive residuals, that begins at the global prototype."""
        shrinkage = tf.exp(tf.convert_to_tensor(self._log_shrinkage.value))
        weight, total = _summed(residual, phi)
        if other_residual is not None:
            other_weight, other_total = _summed(other_residual, others)
            weight, total = weight + other_weight, total + other_total
        return (total + shrinkage * self._global.value) / (weight + shrinkage)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature, "shrinkage": self.shrinkage}


def _summed(residual: tf.Tensor, phi: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Weight `(T, 1)` and weighted sum `(T, D)` of the rows whose residual is positive."""
    weight = tf.cast(tf.nn.relu(residual), phi.dtype)
    if phi.shape.rank == 2:  # Items common to all tasks.
        return tf.reduce_sum(weight, 1, keepdims=True), tf.matmul(weight, phi)
    return tf.reduce_sum(weight, 1, keepdims=True), tf.matmul(weight[:, None], phi)[:, 0]
