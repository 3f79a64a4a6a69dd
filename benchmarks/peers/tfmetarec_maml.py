"""tfmetarec's MAML, its engine for any model, and plain Keras training on the same rows: steps as `fit` takes them."""

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmetarec as tmr
from benchmarks.peers import worker
from benchmarks.peers.problem import EPSILON, INNER_LEARNING_RATE, LEARNING_RATE, Batch, Shape, Weights
from tfmetarec.tasks import Episode, Support

VERSION = f"TensorFlow {tf.__version__}"


class LossOfStep:
    """The loss of each step; Keras shows the mean of all since an epoch began."""

    def __init__(self) -> None:
        self._steps, self._mean = 0, 0.0

    def __call__(self, mean: float) -> float:
        self._steps, before = self._steps + 1, self._mean * self._steps
        self._mean = mean
        return mean * self._steps - before


def network(weights: Weights, shape: Shape) -> keras.Model:
    """The MLP as anyone would write it in Keras, over a feature `x` of the item."""
    x = keras.Input((shape.width,), name="x")
    hidden = keras.layers.Dense(shape.hidden, "relu")(x)
    hidden = keras.layers.Dense(shape.hidden, "relu")(hidden)
    model = keras.Model({"x": x}, keras.layers.Dense(1)(hidden))
    model.set_weights(weights)
    return model


def adam() -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON)


class Peer:
    """Meta-learning by tfmetarec."""

    name, version = "tfmetarec MAML", VERSION
    engine = "auto"

    def __init__(self, weights: Weights, shape: Shape):
        self._model, self._loss = network(weights, shape), LossOfStep()
        self._learner = tmr.meta.MAML(
            self._model,
            inner_steps=shape.inner_steps,
            inner_learning_rate=INNER_LEARNING_RATE,
            engine=self.engine,
        )
        self._learner.compile(optimizer=adam(), jit_compile="auto" if self.engine == "auto" else False)
        self._learner.make_train_function()
        self._gradients = tf.function(self._learner.meta_gradients, autograph=False)

    def put(self, batch: Batch) -> Iterator[Episode]:
        """The rows as Keras's `fit` has them: an iterator over episodes, here over the same one again and again."""
        return iter(tf.data.Dataset.from_tensors(self.episode(batch)).repeat())

    def episode(self, batch: Batch) -> Episode:
        """The rows as an episode; every task has all of its rows."""

        def part(x: np.ndarray, y: np.ndarray) -> Support:
            tasks, rows = y.shape
            item = {"item_id": np.zeros((tasks, rows), np.int32), "x": x}
            return Support({"user_id": np.zeros(tasks, np.int32)}, item, y, np.full(tasks, rows, np.int32))

        episode = Episode(part(batch.support_x, batch.support_y), part(batch.query_x, batch.query_y), {}, {})
        return tf.nest.map_structure(tf.convert_to_tensor, episode)

    def step(self, batch: Any) -> float:
        logs = self._learner.train_function(self.put(batch) if isinstance(batch, Batch) else batch)
        return self._loss(float(logs["loss"]))

    def meta_gradient(self, batch: Any) -> tuple[float, Weights]:
        loss, gradients, _ = self._gradients(self.episode(batch))
        return float(loss), [gradient.numpy() for gradient in gradients]

    def weights(self) -> Weights:
        return [np.array(weight) for weight in self._model.get_weights()]


class VectorizedPeer(Peer):
    """The engine that takes any model."""

    name = "tfmetarec MAML, vectorized_map"
    engine = "vectorized"


class PlainPeer:
    """Ordinary Keras training on the support and query rows together: no tasks, no adapting."""

    name, version = "plain Keras step", VERSION

    def __init__(self, weights: Weights, shape: Shape):
        self._model, self._loss = network(weights, shape), LossOfStep()
        self._model.compile(optimizer=adam(), loss="mean_squared_error")
        self._model.optimizer.build(self._model.trainable_variables)
        self._model.make_train_function()

    def put(self, batch: Batch) -> Iterator[Any]:
        """All rows of all tasks, one after the other, as `fit` has them."""
        width = batch.support_x.shape[2]
        x = np.concatenate([batch.support_x.reshape(-1, width), batch.query_x.reshape(-1, width)])
        y = np.concatenate([batch.support_y.ravel(), batch.query_y.ravel()])[:, None]
        return iter(tf.data.Dataset.from_tensors(({"x": x}, y)).repeat())

    def step(self, batch: Any) -> float:
        logs = self._model.train_function(self.put(batch) if isinstance(batch, Batch) else batch)
        return self._loss(float(logs["loss"]))

    def meta_gradient(self, batch: Any) -> tuple[float, Weights]:
        raise NotImplementedError("a plain step has no meta-gradient.")

    def weights(self) -> Weights:
        return [np.array(weight) for weight in self._model.get_weights()]


WAYS: dict[str, type[worker.Peer]] = {"auto": Peer, "vectorized": VectorizedPeer, "plain": PlainPeer}

if __name__ == "__main__":
    worker.main(WAYS)
