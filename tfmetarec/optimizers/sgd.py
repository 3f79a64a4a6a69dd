"""Gradient descent, row by row."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.optimizers.row_sparse import RowSparseOptimizer, gather, scatter_add, scatter_sub, scatter_update


@keras.saving.register_keras_serializable(package="tfmetarec")
class RowSparseSGD(RowSparseOptimizer, keras.optimizers.SGD):
    """`keras.optimizers.SGD` that visits only the rows of the batch.

    Without momentum and weight decay it is Keras's to the last bit but for the order in which duplicates add up.
    With either it is lazy: a row that is not in the batch neither moves on nor decays, and its momentum waits.

    Args:
        learning_rate: float or schedule. Defaults to 0.01.
        momentum: float in [0, 1]. Defaults to 0.
        nesterov: bool. Defaults to `False`.
        **options: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`, `name`, as Keras takes them.

    Example:
    >>> table = keras.Variable(tf.ones((4, 1)))
    >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [1.0]]), tf.constant([2, 2]), tf.constant([4, 1]))
    >>> _ = RowSparseSGD(0.25).apply_gradients([(gradient, table)])
    >>> table.numpy().ravel().tolist()
    [1.0, 1.0, 0.5, 1.0]

    Reference: [Keras's `SGD`](https://keras.io/api/optimizers/sgd/)
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **options: Any):
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **options)

    def update_rows(self, variable: Any, rows: tf.Tensor, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        if not self.momentum:
            scatter_sub(variable, rows, gradient * learning_rate)
            return
        momentums = self.momentums[self._get_variable_index(variable)]
        step = gather(momentums, rows) * self.momentum - gradient * learning_rate
        scatter_update(momentums, rows, step)
        scatter_add(variable, rows, step * self.momentum - gradient * learning_rate if self.nesterov else step)
