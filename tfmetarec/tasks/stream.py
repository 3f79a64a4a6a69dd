"""Batches of which number `i` depends on a seed and on `i` alone, so that training can be taken up anywhere."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class BatchStream:
    """An endless, random-access stream of batches: what `Episodes` and `Windows` have in common.

    A stream has `steps_per_epoch` and, as `_tables`, the tensors of all features by side; it writes `sample` and
    `_look_up`.
    """

    steps_per_epoch: int
    _tables: dict[str, dict[str, tf.Tensor]]

    def __len__(self) -> int:
        return self.steps_per_epoch

    def sample(self, batch: int) -> dict[str, np.ndarray]:
        """The rows of batch `batch` before their features are looked up; every batch has the same shapes."""
        raise NotImplementedError

    def _look_up(self, rows: dict[str, tf.Tensor]) -> Any:
        """A batch of features from its rows."""
        raise NotImplementedError

    def dataset(self, first_batch: int = 0, batches: int | None = None) -> tf.data.Dataset:
        """Batches `first_batch`, `first_batch + 1`, ... as tensors, prefetched.

        Args:
            first_batch: int, at least 0.
            batches: int, or `None` for an endless data set.
        """
        example = self.sample(0)
        names = list(example)
        dtypes = [tf.as_dtype(value.dtype) for value in example.values()]

        def rows_of(batch: Any) -> dict[str, tf.Tensor]:
            arrays = tf.numpy_function(lambda b: list(self.sample(int(b)).values()), [batch], dtypes)
            for array, value in zip(arrays, example.values(), strict=True):
                array.set_shape(value.shape)
            return dict(zip(names, arrays, strict=True))

        last = first_batch + batches if batches is not None else np.iinfo(np.int64).max
        dataset = tf.data.Dataset.range(first_batch, last)
        # Two workers: NumPy holds the interpreter for part of the work, more would only queue for it.
        dataset = dataset.map(rows_of, num_parallel_calls=2, deterministic=True).map(self._look_up)
        return dataset.prefetch(4)

    def _features(self, table: str, picked: tf.Tensor) -> dict[str, tf.Tensor]:
        """Rows of all features of one of the tables."""
        return {name: tf.gather(value, picked) for name, value in self._tables[table].items()}


def tensors_of(**tables: Any) -> dict[str, dict[str, tf.Tensor]]:
    """`FeatureTable`s by name as the tensors that a stream gathers from."""
    return {side: {name: tf.constant(v) for name, v in table.features.items()} for side, table in tables.items()}


def from_batch(data: Any, first: int) -> Any:
    """A stream from batch `first` on; anything else as it is."""
    return data.dataset(first) if isinstance(data, BatchStream) else data


def once(data: Any) -> Any:
    """One epoch of a stream; anything else as it is."""
    return data.dataset(batches=len(data)) if isinstance(data, BatchStream) else data


def taken_up(model: keras.Model, callbacks: Iterable[Any], initial_epoch: int, epochs: int) -> tuple[int, int]:
    """Where training begins and where it ends: a `Checkpoint` among the callbacks may know of an earlier run.

    Args:
        model: that a checkpoint restores.
        callbacks: of `fit`.
        initial_epoch: int. Where training would begin without them.
        epochs: int. Where it would end.
    """
    for callback in callbacks:
        if hasattr(callback, "restore") and hasattr(callback, "is_finished"):
            initial_epoch = max(callback.restore(model), initial_epoch)
            if callback.is_finished:
                epochs = initial_epoch
    return initial_epoch, epochs


def only_input(data: Any, kind: type) -> Any:
    """The batch that Keras wrapped together with absent targets and weights, as `train_on_batch` and its like do."""
    if isinstance(data, tuple) and not isinstance(data, kind) and all(rest is None for rest in data[1:]):
        return data[0] if data else data
    return data


def check_at_least(least: float, **options: Any) -> None:
    """Refuses options below `least`, NaN included; one that is `None` is left to its default.

    Raises:
        ValueError: naming the option, the rule and what came.
    """
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")


def is_in_time(order: str | None, ordered: bool) -> bool:
    """Whether interactions come in the order of time, as asked or, unasked, where there are timestamps.

    Raises:
        ValueError: for another order, or time without timestamps.
    """
    if order not in (None, "time", "random"):
        raise ValueError(f"`order` must be 'time' or 'random'. Received: order={order!r}")
    if order == "time" and not ordered:
        raise ValueError("`order` 'time' needs a `timestamp` column in the interactions, which have none.")
    return ordered if order is None else order == "time"
