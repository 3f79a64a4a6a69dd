"""An embedding table of which a training step touches only the rows that the batch asks for."""

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow.python.ops.parallel_for import pfor

_EVERY_ROW = "it would touch every row in every step"
_REFUSED = {
    "embeddings_regularizer": f"None: {_EVERY_ROW}",
    "embeddings_constraint": f"None: {_EVERY_ROW}",
    "mask_zero": "False: TensorFlow Serving's batching corrupts masks; give a length, see `ListPooling`",
    "lora_rank": f"None: {_EVERY_ROW}",
    "lora_alpha": "None: this layer has no LoRA",
    "quantization_config": "None: this layer is not quantized",
}


@keras.saving.register_keras_serializable(package="tfmetarec")
class RowSparseEmbedding(keras.layers.Embedding):
    """Looks up the vectors of ids, at a cost that does not grow with the table.

    `keras.layers.Embedding` reads its whole table and gathers from what it read; once rows have been updated in
    place, TensorFlow makes that reading a copy of the table. This layer gathers from the variable itself. Together
    with the optimizers of `tfmetarec.optimizers` a step of training costs what its rows cost; any other optimizer
    works too, and visits every row.

    Args:
        input_dim: int, at least 1. Number of rows; ids are from 0 to `input_dim - 1`.
        output_dim: int, at least 1. Width of a row.
        embeddings_initializer: of the table, as Keras takes it. Defaults to "uniform".
        **options: `name`, `dtype`, `trainable`, `weights`, as Keras takes them. Whatever touches the whole table
            (`embeddings_regularizer`, `embeddings_constraint`, LoRA) is refused, and so are `mask_zero` and
            quantization.

    Call arguments: ids `(...)`, any integers. Returns `(..., output_dim)`, in the compute dtype.

    Example:
    >>> table = RowSparseEmbedding(1_000_000, 2, "ones")
    >>> with tf.GradientTape() as tape:
    ...     loss = tf.reduce_sum(table(ops.array([3, 7, 3])))
    >>> tape.gradient(loss, table.embeddings.value).indices.numpy().tolist()
    [3, 7, 3]

    Reference: `tf.gather` of a variable; [Keras's `Embedding`](https://keras.io/api/layers/core_layers/embedding/)
    """

    def __init__(self, input_dim: int, output_dim: int, embeddings_initializer: Any = "uniform", **options: Any):
        for name, rule in _REFUSED.items():
            if options.get(name):
                raise ValueError(f"`{name}` must be {rule}. Received: {name}={options[name]}")
        super().__init__(input_dim, output_dim, embeddings_initializer, **options)
        if self.quantization_mode is not None:
            raise ValueError(
                f"`dtype` must be {_REFUSED['quantization_config']}. Received: dtype={self.dtype_policy.name}"
            )

    def build(self, input_shape: Any = None) -> None:
        if getattr(self, "_embeddings", None) is None:
            shape = (self.input_dim, self.output_dim)
            # Rows are cast to the compute dtype, never the table.
            self._embeddings = self.add_weight(shape, self.embeddings_initializer, name="embeddings", autocast=False)
            self.built = True

    def call(self, inputs: Any) -> tf.Tensor:
        if isinstance(inputs, tf.RaggedTensor | tf.SparseTensor):
            raise TypeError(
                f"ids must be a dense tensor, with lists padded to one length. Received: {type(inputs).__name__}"
            )
        if inputs.dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        return ops.cast(tf.gather(_of_this_replica(self.embeddings.value), inputs), self.compute_dtype)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"`enable_lora` is not for a {type(self).__name__}: {_EVERY_ROW}.")

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"`quantize` is not for a {type(self).__name__}: use `keras.layers.Embedding`.")

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name not in _REFUSED}


def _of_this_replica(table: Any) -> Any:
    """The copy of a distributed variable that this replica holds; gathering from them all would read them."""
    if not isinstance(table, tf.distribute.DistributedValues) or tf.distribute.in_cross_replica_context():
        return table
    copies = tf.distribute.get_strategy().experimental_local_results(table)
    return next(copy for copy in copies if copy.handle is table.handle)


def _gather_for_all_tasks(loop: Any) -> Any:
    """Within `tf.vectorized_map`, where TensorFlow knows how to gather from tensors only: one gather for all."""
    ids, is_stacked, _ = loop.input(1)
    return pfor.wrap(
        tf.raw_ops.ResourceGather(resource=loop.unstacked_input(0), indices=ids, dtype=loop.get_attr("dtype")),
        is_stacked,
    )


with contextlib.suppress(KeyError):  # Somebody else has seen to it.
    pfor.RegisterPFor("ResourceGather")(_gather_for_all_tasks)
