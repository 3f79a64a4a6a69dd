"""tfmetarec's own MAML step as a graph, its engine for any model, and a plain Keras training step on the same rows."""

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmetarec as tmr
from benchmarks.peers import worker
from benchmarks.peers.problem import EPSILON, INNER_LEARNING_RATE, LEARNING_RATE, Batch, Shape, Weights
from tfmetarec.tasks import Episode, Support


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

    name = "tfmetarec MAML"
    engine = "auto"

    def __init__(self, weights: Weights, shape: Shape):
        self.version = _version()
        self._model = network(weights, shape)
        self._learner = tmr.meta.MAML(
            self._model,
            inner_steps=shape.inner_steps,
            inner_learning_rate=INNER_LEARNING_RATE,
            engine=self.engine,
        )
        self._learner.compile(optimizer=adam(), jit_compile="auto" if self.engine == "auto" else False)
        self._step = tf.function(self._learner.train_step, autograph=False)
        self._gradients = tf.function(self._learner.meta_gradients, autograph=False)

    def put(self, batch: Batch) -> Episode:
        """The rows as an episode; every task has all of its rows."""

        def part(x: np.ndarray, y: np.ndarray) -> Support:
            tasks, rows = y.shape
            item = {"item_id": np.zeros((tasks, rows), np.int32), "x": x}
            return Support({"user_id": np.zeros(tasks, np.int32)}, item, y, np.full(tasks, rows, np.int32))

        episode = Episode(part(batch.support_x, batch.support_y), part(batch.query_x, batch.query_y), {}, {})
        return tf.nest.map_structure(tf.convert_to_tensor, episode)

    def step(self, batch: Any) -> float:
        self._learner.loss_tracker.reset_state()  # Keras shows the mean since the last reset.
        return float(self._step(batch if isinstance(batch, Episode) else self.put(batch))["loss"])

    def meta_gradient(self, batch: Any) -> tuple[float, Weights]:
        loss, gradients, _ = self._gradients(batch if isinstance(batch, Episode) else self.put(batch))
        return float(loss), [gradient.numpy() for gradient in gradients]

    def weights(self) -> Weights:
        return [np.array(weight) for weight in self._model.get_weights()]


class VectorizedPeer(Peer):
    """The engine that takes any model."""

    name = "tfmetarec MAML, vectorized_map"
    engine = "vectorized"


class PlainPeer:
    """Ordinary Keras training on the support and query rows together: no tasks, no adapting."""

    name = "plain Keras step"

    def __init__(self, weights: Weights, shape: Shape):
        self.version = _version()
        self._model = network(weights, shape)
        self._model.compile(optimizer=adam(), loss="mean_squared_error")
        self._model.optimizer.build(self._model.trainable_variables)
        self._step = tf.function(self._model.train_step, autograph=False)

    def put(self, batch: Batch) -> Any:
        """All rows of all tasks, one after the other."""
        width = batch.support_x.shape[2]
        x = np.concatenate([batch.support_x.reshape(-1, width), batch.query_x.reshape(-1, width)])
        y = np.concatenate([batch.support_y.ravel(), batch.query_y.ravel()])[:, None]
        return {"x": tf.constant(x)}, tf.constant(y)

    def step(self, batch: Any) -> float:
        self._model.reset_metrics()
        return float(self._step(self.put(batch) if isinstance(batch, Batch) else batch)["loss"])

    def meta_gradient(self, batch: Any) -> tuple[float, Weights]:
        raise NotImplementedError("a plain step has no meta-gradient.")

    def weights(self) -> Weights:
        return [np.array(weight) for weight in self._model.get_weights()]


def _version() -> str:
    return f"TensorFlow {tf.__version__}"


WAYS: dict[str, type[worker.Peer]] = {"auto": Peer, "vectorized": VectorizedPeer, "plain": PlainPeer}

if __name__ == "__main__":
    worker.main(WAYS)
