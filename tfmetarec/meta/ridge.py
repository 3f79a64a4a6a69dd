"""The last layer by ridge regression on the support, solved in closed form."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmetarec.meta.last_layer import LastLayer
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.meta.paths import EncodedNegatives, TaskRows

LEARNED = ("regularization", "level_regularization", "unobserved", "scale")


@keras.saving.register_keras_serializable(package="tfmetarec")
class Ridge(MetaLearner):
    """Fits the last layer to a user's support exactly: one small linear system in place of gradient steps.

    A score is `start + phi . change`, with `phi` the inputs of the model's last layer (the item vector of a
    `TwoTower`) and a 1 for its bias, the user's level. Of ratings, `change` is the ridge regression of what the
    starting point did not foresee,

        change = argmin sum_s (label_s - start_s - phi_s . change)^2 + R(change),
        R(change) = regularization * |change of the vector|^2 + level_regularization * (change of the level)^2,

    whatever loss the outer loop has. With implicit feedback it is the fold-in of ALS, where everything that was not
    bought counts:

        d = argmin sum_s (1 - phi_s . d)^2 + unobserved * mean over all items of (phi . d)^2 + R(d),
        change = scale * d.

    The mean is a Gram matrix of the items, for a `TwoTower` the same one for all users. It is estimated from the
    negatives, each weighing one over how often it was expected to be drawn, and exact where they are the whole
    catalogue. A user's own items are in it like all others: to leave them out, and weigh an interaction
    `1 + unobserved / items`, gives the same `d` but for its length, which is what `scale` is for. Targets of 1 and 0
    are of another unit than scores before a softmax, so the starting point, popularity included, is no part of this
    regression but what it is added to.

    The outer loop learns what makes such a fit good: item vectors, starting point, and the four numbers above, as
    logarithms. Its gradient passes through the solution, of an `S x S` system or of a `(D + 1) x (D + 1)` one,
    whichever is smaller. Without support `change` is exactly 0.

    Args:
        model: `keras.Model`, built: a `TwoTower` or `Ranker` with linear activation, or a functional model over a
            dict of features that ends in a linear `Dense(1)`. Only that layer adapts (of a `TwoTower`, the user's own
            vector and level).
        regularization: float, greater than 0. Where it starts, in interactions. Defaults to 1.
        level_regularization: float, greater than 0. The same for the level. Defaults to 1.
        unobserved: float, greater than 0. Implicit feedback: where the weight of the whole catalogue starts, in
            interactions. Defaults to 10.
        scale: float, greater than 0. Implicit feedback: where the scale starts. Defaults to 1.
        **options: of `MetaLearner`, except `adapted`.

    Raises:
        ValueError: for an option out of range, or a model whose score is not linear in its last layer.

    Example:
    >>> import tfmetarec as tmr
    >>> data = tmr.data.load("synthetic", n_users=64, seed=0)
    >>> vocabulary = tmr.data.Vocabulary.fit(data)
    >>> episodes = tmr.tasks.user_episodes(data, vocabulary, support=(0, 5), query=5, negatives=20)
    >>> learner = Ridge(tmr.models.TwoTower(vocabulary, 8))
    >>> learner.compile(optimizer="adam")
    >>> history = learner.fit(episodes, epochs=1, verbose=0)

    References: [Bertinetto et al., 2019](https://arxiv.org/abs/1805.08136), section 3;
    [Hu et al., 2008](https://doi.org/10.1109/ICDM.2008.22), equation 4;
    [Rendle et al., 2022](https://arxiv.org/abs/2110.14037), section 2, for the weight of everything unobserved.
    """

    suits_xla = False  # Its Cholesky took 29 ms where TensorFlow's took 2.

    def __init__(
        self,
        model: keras.Model,
        *,
        regularization: float = 1.0,
        level_regularization: float = 1.0,
        unobserved: float = 10.0,
        scale: float = 1.0,
        **options: Any,
    ):
        start = dict(zip(LEARNED, (regularization, level_regularization, unobserved, scale), strict=True))
        for name, value in start.items():
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be greater than 0 and finite. Received: {name}={value}")
        if (adapted := options.pop("adapted", None)) is not None:
            raise ValueError(
                f"`adapted` cannot be chosen: only the last layer is solved for. Received: adapted={adapted!r}"
            )
        last = LastLayer(model)
        super().__init__(model, adapted=last.pattern, **options)
        self.adapted = None  # The pattern follows from the model.
        self.regularization, self.level_regularization = regularization, level_regularization
        self.unobserved, self.scale, self._last = unobserved, scale, last
        self._logarithms = {
            name: self.add_weight((), keras.initializers.Constant(float(np.log(value))), name=f"log_{name}")
            for name, value in start.items()
        }

    def adapt_rows(self, rows: TaskRows, training: bool = False) -> list[tf.Tensor]:
        if self.feedback == "implicit" and rows.negatives is None:
            raise ValueError("implicit feedback needs negatives to estimate what was not bought, and there are none.")
        phi, score = self._last.features(self._cut, rows.user, rows.item)
        weight = tf.cast(rows.weight, phi.dtype)
        penalty = self._penalty()
        if rows.negatives is None:
            change = solve(phi, tf.cast(rows.label, phi.dtype) - tf.cast(score, phi.dtype), weight, penalty)
        else:
            penalty += self._value("unobserved") * self._gram(rows.user, rows.negatives)
            change = self._value("scale") * solve(phi, tf.ones_like(weight), weight, penalty)
        return self._last.moved(self.adapted_variables, change)

    def _value(self, name: str) -> tf.Tensor:
        return tf.exp(tf.convert_to_tensor(self._logarithms[name].value))

    def _penalty(self) -> tf.Tensor:
        """The matrix `(D + 1, D + 1)` of `R`."""
        vector, level = self._value("regularization"), self._value("level_regularization")
        return tf.linalg.diag(tf.concat([tf.fill([self._last.width - 1], vector), level[None]], 0))

    def _gram(self, user: Any, negatives: EncodedNegatives) -> tf.Tensor:
        """The mean of `phi phi^T` over all items, `(D + 1, D + 1)`; `(T, D + 1, D + 1)` where `phi` differs by task.

        What was drawn stands for one over its expected draws, and a mean divides by the sum of that: on average the
        number of items, known or not. Weights of the negatives are left aside, as a user's own items are items too:
        with them training, where they hide the query as well, would differ from what is served.
        """
        phi, _ = self._last.features(self._cut, user, negatives.item)
        share = tf.nn.softmax(-tf.cast(negatives.log_expected, phi.dtype))
        return tf.matmul(phi * share[..., None], phi, transpose_a=True)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in LEARNED}}


def solve(phi: tf.Tensor, target: tf.Tensor, weight: tf.Tensor, penalty: tf.Tensor) -> tf.Tensor:
    """`argmin_d sum_s weight_s (target_s - phi_s . d)^2 + d^T penalty d` of each task, `(T, D)`.

    With `A` the rows `phi`, each times the root of its weight, `(penalty + A^T A)^-1 A^T` is `Z (I + A Z)^-1`
    with `Z = penalty^-1 A^T` (the Woodbury identity): fewer rows than dimensions are solved for among themselves.

    In double precision, whatever comes in: in single, equal rows under a small penalty leave no digit right, or NaN.
    Measured, that costs a tenth more with few rows, and twice as much with many.

    Args:
        phi: `(T, S, D)`.
        target: `(T, S)`.
        weight: `(T, S)`, at least 0.
        penalty: `(D, D)` or `(T, D, D)`, symmetric and positive definite.

    >>> phi, target = tf.constant([[[1.0, 0.0], [2.0, 0.0]]]), tf.constant([[3.0, 100.0]])
    >>> solve(phi, target, tf.constant([[1.0, 0.0]]), 2.0 * tf.eye(2)).numpy().tolist()
    [[1.0, 0.0]]
    """
    dtype = phi.dtype
    phi, target, weight, penalty = (tf.cast(tensor, tf.float64) for tensor in (phi, target, weight, penalty))
    root = tf.sqrt(weight)
    a, b = phi * root[..., None], (target * root)[..., None]
    rows, width = a.shape[1:]
    if rows is None or rows >= width or penalty.shape.rank == 3:
        factor = tf.linalg.cholesky(penalty + tf.matmul(a, a, transpose_a=True))
        solution = tf.linalg.cholesky_solve(factor, tf.matmul(a, b, transpose_a=True))
    else:  # One penalty for all tasks, and so one system with the rows of all tasks on its right.
        z = tf.linalg.cholesky_solve(tf.linalg.cholesky(penalty), tf.transpose(tf.reshape(a, [-1, width])))
        z = tf.reshape(tf.transpose(z), tf.shape(a))  # (T, S, D)
        factor = tf.linalg.cholesky(tf.eye(rows, dtype=tf.float64) + tf.matmul(a, z, transpose_b=True))
        solution = tf.matmul(z, tf.linalg.cholesky_solve(factor, b), transpose_a=True)
    return tf.cast(solution[..., 0], dtype)
