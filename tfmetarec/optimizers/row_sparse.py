"""What the row-sparse optimizers share: whatever comes before the rule by which a row moves.

A gradient of gathered rows is a `tf.IndexedSlices`: row numbers, with repeats, and a value for each. Keras's
own rules add it to slots and so make it as large as the table. Here it stays a list of rows, through clipping,
weight decay and the update. Gathers and scatters do it all: `ResourceSparseApply*` kernels exist for Adagrad
(with epsilon outside the root, where Keras has it inside) and for momentum, none for a lazy Adam.
"""

from typing import Any

import keras
import tensorflow as tf

_REFUSED = {
    "use_ema": ("False", "an average of the weights touches every row in every step"),
    "gradient_accumulation_steps": ("None", "accumulated gradients are as large as the table; take larger batches"),
    "loss_scale_factor": ("None", "gradients of rows are not unscaled; train in bfloat16, which needs no scaling"),
}


class RowSparseOptimizer(keras.optimizers.Optimizer):
    """Base of the row-sparse optimizers; comes before the Keras optimizer whose rule it makes row-sparse.

    A subclass says how rows move, in `update_rows`. A dense gradient takes Keras's own way.

    Under XLA the number of ids must be known when it compiles (`tf.boolean_mask` leaves it open): its `tf.unique`
    takes padding for rows, and gradients come out wrong.

    Args:
        learning_rate: as Keras takes it.
        **options: of the Keras optimizer.

    Raises:
        ValueError: if an option is given that would touch every row.
    """

    def __init__(self, learning_rate: Any, **options: Any):
        for name, (rule, reason) in _REFUSED.items():
            if options.get(name):
                raise ValueError(f"`{name}` must be {rule}: {reason}. Received: {name}={options[name]}")
        super().__init__(learning_rate=learning_rate, **options)

    def update_rows(self, variable: Any, rows: tf.Tensor, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        """Moves some rows of `variable`, and what the optimizer remembers of them.

        Args:
            variable: `tf.Variable`, `(V, ...)`.
            rows: `(U,)`, each row once.
            gradient: `(U, ...)`, in the dtype of the variable.
            learning_rate: scalar, in the dtype of the variable.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how rows move.")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        learning_rate = tf.cast(learning_rate, variable.dtype)
        decay = self.weight_decay is not None and self._use_weight_decay(variable)
        if isinstance(gradient, tf.IndexedSlices):
            if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # Replicas may share rows.
                gradient = sum_duplicates(gradient)
            rows = gradient.indices
            if decay:
                scatter_sub(variable, rows, gather(variable, rows) * self._weight_decay_of(variable) * learning_rate)
            self.update_rows(variable, rows, tf.cast(gradient.values, variable.dtype), learning_rate)
        else:
            if decay:
                variable.assign_sub(variable * self._weight_decay_of(variable) * learning_rate)
            super().update_step(gradient, variable, learning_rate)

    def _weight_decay_of(self, variable: Any) -> tf.Tensor:
        return tf.cast(self.weight_decay, variable.dtype)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing yet: which rows decay is known in `update_step`."""

    def _backend_apply_gradients(self, grads: list[Any], trainable_variables: list[Any]) -> None:
        # Once, here: XLA's `tf.unique` repeats rows when it is given the rows of another.
        grads = [sum_duplicates(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        super()._backend_apply_gradients(grads, trainable_variables)

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        # The rows left out are zeros of the full gradient, which no norm counts and no clipping moves.
        clipped = super()._clip_gradients([g.values if isinstance(g, tf.IndexedSlices) else g for g in grads])
        return [
            tf.IndexedSlices(values, g.indices, g.dense_shape) if isinstance(g, tf.IndexedSlices) else values
            for g, values in zip(grads, clipped, strict=True)
        ]


def sum_duplicates(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """The same gradient with every row once.

    >>> summed = sum_duplicates(tf.IndexedSlices(tf.constant([1.0, 2.0, 4.0]), tf.constant([7, 3, 7])))
    >>> summed.indices.numpy().tolist(), summed.values.numpy().tolist()
    ([7, 3], [5.0, 2.0])
    """
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


# A distributed variable gives the handle of the copy that is being updated, where `tf.gather` would read them all.


def gather(variable: Any, rows: tf.Tensor) -> tf.Tensor:
    """Rows of a variable, Keras's or TensorFlow's, without reading the others."""
    return tf.raw_ops.ResourceGather(resource=variable.handle, indices=rows, dtype=tf.as_dtype(variable.dtype))


def scatter_add(variable: Any, rows: tf.Tensor, values: tf.Tensor) -> None:
    tf.raw_ops.ResourceScatterAdd(resource=variable.handle, indices=rows, updates=values)


def scatter_sub(variable: Any, rows: tf.Tensor, values: tf.Tensor) -> None:
    tf.raw_ops.ResourceScatterSub(resource=variable.handle, indices=rows, updates=values)


def scatter_update(variable: Any, rows: tf.Tensor, values: tf.Tensor) -> None:
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=values)


def no_gradient(variable: keras.Variable) -> tf.Tensor | tf.IndexedSlices:
    """A gradient that says nothing of a variable: zeros, or of an embedding table no rows."""
    if not variable.path.endswith("embeddings"):
        return tf.zeros(variable.shape, variable.dtype)
    nothing = tf.zeros((0, *variable.shape[1:]), variable.dtype)  # Zeros would be as large as the table.
    return tf.IndexedSlices(nothing, tf.zeros((0,), tf.int32), tf.constant(variable.shape))
