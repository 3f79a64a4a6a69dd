"""Lazy Adam and AdamW, row by row."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.optimizers.row_sparse import RowSparseOptimizer, gather, scatter_sub, scatter_update


@keras.saving.register_keras_serializable(package="tfmetarec")
class RowSparseAdam(RowSparseOptimizer, keras.optimizers.Adam):
    """`keras.optimizers.Adam` that visits only the rows of the batch.

    It is lazy: a row that is not in the batch stays, and its moments wait, where Adam would go on moving it by
    what it remembers. Where every row is in every batch the two are the same. The bias of the moments is
    corrected by the number of steps, not by how often a row was visited.

    Args:
        learning_rate: float or schedule. Defaults to 0.001.
        beta_1: float in [0, 1). Decay of the mean gradient. Defaults to 0.9.
        beta_2: float in [0, 1). Decay of the mean squared gradient. Defaults to 0.999.
        epsilon: float, greater than 0. Defaults to 1e-7.
        amsgrad: bool. Defaults to `False`.
        **options: `weight_decay` (of visited rows alone), `clipnorm`, `clipvalue`, `global_clipnorm`, `name`, as
            Keras takes them.

    Example:
    >>> table = keras.Variable(tf.ones((3, 1)))
    >>> gradient = tf.IndexedSlices(tf.constant([[8.0]]), tf.constant([1]), tf.constant([3, 1]))
    >>> _ = RowSparseAdam(0.25).apply_gradients([(gradient, table)])
    >>> table.numpy().ravel().round(4).tolist()  # A first step of the learning rate, whatever the gradient.
    [1.0, 0.75, 1.0]

    Reference: [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **options: Any,
    ):
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, amsgrad=amsgrad, **options)

    def update_rows(self, variable: Any, rows: tf.Tensor, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, variable.dtype)
        unbias_1 = 1 - tf.pow(tf.cast(self.beta_1, variable.dtype), step)
        unbias_2 = 1 - tf.pow(tf.cast(self.beta_2, variable.dtype), step)

        mean = gather(self._momentums[index], rows)
        mean += (gradient - mean) * (1 - self.beta_1)
        scatter_update(self._momentums[index], rows, mean)
        square = gather(self._velocities[index], rows)
        square += (tf.square(gradient) - square) * (1 - self.beta_2)
        scatter_update(self._velocities[index], rows, square)
        if self.amsgrad:
            square = tf.maximum(gather(self._velocity_hats[index], rows), square)
            scatter_update(self._velocity_hats[index], rows, square)
        alpha = learning_rate * tf.sqrt(unbias_2) / unbias_1
        scatter_sub(variable, rows, mean * alpha / (tf.sqrt(square) + self.epsilon))


@keras.saving.register_keras_serializable(package="tfmetarec")
class RowSparseAdamW(RowSparseAdam, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that visits only the rows of the batch.

    Lazy as `RowSparseAdam` is, and in its decay too: a row decays in the steps that visit it, so rare rows keep
    more of their weight than under Keras's AdamW.

    Args:
        learning_rate: float or schedule. Defaults to 0.001.
        weight_decay: float, at least 0. Share that a visited row loses, times the learning rate. Defaults to 0.004.
        beta_1: float in [0, 1). Decay of the mean gradient. Defaults to 0.9.
        beta_2: float in [0, 1). Decay of the mean squared gradient. Defaults to 0.999.
        epsilon: float, greater than 0. Defaults to 1e-7.
        amsgrad: bool. Defaults to `False`.
        **options: `clipnorm`, `clipvalue`, `global_clipnorm`, `name`, as Keras takes them.

    Example:
    >>> table = keras.Variable(tf.ones((3, 1)))
    >>> nothing = tf.IndexedSlices(tf.constant([[0.0]]), tf.constant([1]), tf.constant([3, 1]))
    >>> _ = RowSparseAdamW(0.5, weight_decay=0.5).apply_gradients([(nothing, table)])
    >>> table.numpy().ravel().tolist()
    [1.0, 0.75, 1.0]

    Reference: [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **options: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **options)
