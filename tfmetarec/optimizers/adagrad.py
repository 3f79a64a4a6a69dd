"""Adagrad, row by row."""

from typing import Any

import keras
import tensorflow as tf

from tfmetarec.optimizers.row_sparse import RowSparseOptimizer, gather, scatter_sub, scatter_update


@keras.saving.register_keras_serializable(package="tfmetarec")
class RowSparseAdagrad(RowSparseOptimizer, keras.optimizers.Adagrad):
    """`keras.optimizers.Adagrad` that visits only the rows of the batch.

    A row without a gradient would stay where it is, so nothing is lost. A row that comes twice in a batch has
    its gradients added before they are squared, as in a dense gradient; Keras squares them one by one.

    Args:
        learning_rate: float or schedule. Defaults to 0.001.
        initial_accumulator_value: float, at least 0. Defaults to 0.1.
        epsilon: float, greater than 0. Defaults to 1e-7.
        **options: `weight_decay` (of visited rows alone), `clipnorm`, `clipvalue`, `global_clipnorm`, `name`, as
            Keras takes them.

    Example:
    >>> table = keras.Variable(tf.ones((3, 1)))
    >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([2, 2]), tf.constant([3, 1]))
    >>> optimizer = RowSparseAdagrad(0.5, initial_accumulator_value=0.0)
    >>> _ = optimizer.apply_gradients([(gradient, table)])
    >>> table.numpy().ravel().tolist()  # A step of 0.5 * 3 / sqrt(3 * 3).
    [1.0, 1.0, 0.5]

    Reference: [Duchi et al., 2011](https://jmlr.org/papers/v12/duchi11a.html)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **options: Any,
    ):
        super().__init__(learning_rate, initial_accumulator_value=initial_accumulator_value, epsilon=epsilon, **options)

    def update_rows(self, variable: Any, rows: tf.Tensor, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        accumulators = self._accumulators[self._get_variable_index(variable)]
        squares = gather(accumulators, rows) + tf.square(gradient)
        scatter_update(accumulators, rows, squares)
        scatter_sub(variable, rows, learning_rate * gradient / tf.sqrt(squares + self.epsilon))
