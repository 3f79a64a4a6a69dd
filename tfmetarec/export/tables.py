"""Tables of an export in 32, 16 or 8 bits: what a request reads is decoded, what it does not read stays small."""

from typing import Any

import tensorflow as tf

WEIGHTS = ("float32", "float16", "int8")


class Table:
    """A table of a given precision, read by rows or whole.

    int8 holds `(value - offset) / scale` of each column, `scale` and `offset` its own: the last columns of an item are
    its bias and a constant, of another size than the vector before them.

    Args:
        values: `(N, ...)`. What is not float, such as the rows of a model that runs whole, is held as it is.
        weights: "float32", "float16" or "int8".
        variable: that holds `values` in 32 bits already, so that they are not stored twice.

    Raises:
        ValueError: if a value is too large for so few bits.
    """

    def __init__(self, values: tf.Tensor, weights: str, variable: Any = None):
        self.scale = self.offset = None
        if variable is not None:
            self.codes = variable
            return
        if not values.dtype.is_floating:
            weights = "float32"
        if weights == "float16":
            values = tf.cast(values, tf.float16)
            if not bool(tf.reduce_all(tf.math.is_finite(values))):
                raise ValueError(
                    f"`weights` float16 must hold values up to {tf.float16.max}, and an item has a larger one."
                )
        elif weights == "int8":
            values = tf.cast(values, tf.float32)
            low, high = tf.reduce_min(values, 0), tf.reduce_max(values, 0)
            # A column of one value has no width: any scale will do.
            scale = tf.where(high > low, (high - low) / 254.0, 1.0)
            offset = low + 127.0 * tf.where(high > low, scale, 0.0)
            self.scale, self.offset = (tf.Variable(part, trainable=False) for part in (scale, offset))
            values = tf.cast(tf.round((values - offset) / scale), tf.int8)
        self.codes = tf.Variable(values, trainable=False)

    def rows(self, places: tf.Tensor) -> tf.Tensor:
        """The rows at `places`, decoded."""
        return self._decoded(tf.gather(self.codes, places))

    def whole(self) -> tf.Tensor:
        """All rows, decoded."""
        return self._decoded(tf.convert_to_tensor(self.codes))

    def products(self, query: tf.Tensor) -> tf.Tensor:
        """`(B, N)`, the dot products of `(B, D)` with every row; the columns' scales go into the query."""
        constant = 0.0
        if self.scale is not None:
            constant = tf.linalg.matvec(query, self.offset)[:, None]
            query = query * self.scale
        codes = tf.cast(tf.convert_to_tensor(self.codes), query.dtype)
        return tf.matmul(query, codes, transpose_b=True) + constant

    def _decoded(self, codes: tf.Tensor) -> tf.Tensor:
        if self.scale is not None:
            return tf.cast(codes, tf.float32) * self.scale + self.offset
        return tf.cast(codes, tf.float32) if codes.dtype == tf.float16 else codes
