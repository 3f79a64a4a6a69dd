"""A MAML step over an embedding table of a given number of rows: what does the table's size cost?

`python -m benchmarks.peers.embedding_table --rows N --way OPTIMIZER`; otherwise as every worker.
"""

import argparse
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfmetarec as tmr
from benchmarks.peers import worker
from tfmetarec.tasks import Episode, Support

WIDTH, HIDDEN, TASKS, SUPPORT, QUERY = 32, 64, 32, 20, 10
OPTIMIZERS = {
    "sgd": lambda: tmr.optimizers.RowSparseSGD(0.01),
    "adagrad": lambda: tmr.optimizers.RowSparseAdagrad(0.01),
    "adam": lambda: tmr.optimizers.RowSparseAdam(1e-3),
    "adamw": lambda: tmr.optimizers.RowSparseAdamW(1e-3, weight_decay=0.01),
}


class Stepper:
    """MAML whose items are rows of one table under an MLP; every step asks for other rows."""

    version = f"TensorFlow {tf.__version__}"

    def __init__(self, optimizer: str, rows: int, seed: int):
        made = OPTIMIZERS[optimizer]()
        self.name = type(made).__name__
        ids = keras.Input((), dtype="int32", name="item_id")
        vectors = tmr.models.RowSparseEmbedding(rows, WIDTH, keras.initializers.Zeros())(ids)
        hidden = keras.layers.Dense(HIDDEN, "relu", kernel_initializer=keras.initializers.HeUniform(seed))(vectors)
        model = keras.Model({"item_id": ids}, keras.layers.Dense(1)(hidden))
        self._learner = tmr.meta.MAML(model, inner_learning_rate=0.01)
        self._learner.compile(optimizer=made)
        self._step = tf.function(self._take, autograph=False)
        rng = np.random.default_rng(seed)
        self.batches = [self._episode(rows, rng) for _ in range(worker.BATCHES)]

    def _episode(self, rows: int, rng: np.random.Generator) -> Episode:
        def part(size: int) -> Support:
            item = {"item_id": rng.integers(0, rows, (TASKS, size)).astype("int32")}
            label = rng.normal(size=(TASKS, size)).astype("float32")
            user = {"user_id": np.zeros(TASKS, np.int32)}
            return Support(user, item, label, np.full(TASKS, size, np.int32))

        return tf.nest.map_structure(tf.convert_to_tensor, Episode(part(SUPPORT), part(QUERY), {}, {}))

    def _take(self, episode: Episode) -> tf.Tensor:
        self._learner.loss_tracker.reset_state()  # Keras shows the mean since the last reset.
        return self._learner.train_step(episode)["loss"]

    def step(self, batch: Any) -> float:
        return float(self._step(batch))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Times MAML steps over an embedding table; prints JSON.")
    parser.add_argument("--rows", type=int, required=True, help="of the table")
    parser.add_argument("--way", default="adagrad", choices=OPTIMIZERS, help="optimizer")
    worker.add_options(parser)
    given = worker.checked(parser, arguments)
    stepper = Stepper(given.way, given.rows, given.seed)
    worker.serve(worker.Run(stepper, stepper.batches), given, parser)


if __name__ == "__main__":
    main()
