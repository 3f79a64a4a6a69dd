"""The training step that every peer takes: its sizes, its settings, its first weights and its data, in NumPy alone.

The step is second-order MAML on an MLP of two hidden ReLU layers with biases and a linear output. Each task moves the
weights by gradient descent on the mean squared error of its support; the mean over tasks of the query errors then
moves the shared weights, through all of that, by Adam.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

INNER_LEARNING_RATE = 0.01
LEARNING_RATE = 1e-3
BETAS = (0.9, 0.999)
EPSILON = 1e-8
ROW_NORM = 8.0  # Of `x`, at every width: at unit variance the inner step overshoots where rows are wide.

Weights = list[np.ndarray]


class Shape(NamedTuple):
    """The sizes of a training step.

    Attributes:
        width: `D`, features of a row.
        hidden: `H`, units of each of the two hidden layers.
        tasks: `T`, tasks in a batch.
        support: `S`, rows that a task adapts to.
        query: `Q`, rows that judge the adapted weights.
        inner_steps: gradient steps of each task.
    """

    width: int
    hidden: int
    tasks: int
    support: int = 20
    query: int = 10
    inner_steps: int = 1

    def __str__(self) -> str:
        steps = "1 step" if self.inner_steps == 1 else f"{self.inner_steps} steps"
        return f"D{self.width} H{self.hidden}, {steps}, {self.tasks} tasks"


SHAPES = [
    Shape(128, 64, 32, inner_steps=1),
    Shape(128, 64, 32, inner_steps=5),
    Shape(512, 512, 32, inner_steps=1),
    Shape(512, 512, 32, inner_steps=3),
    Shape(128, 64, 256, inner_steps=1),
]


class Batch(NamedTuple):
    """The rows of `T` tasks, float32: `x` is `(T, S, D)` or `(T, Q, D)`, `y` the same without `D`."""

    support_x: np.ndarray
    support_y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray


def initial_weights(shape: Shape, seed: int) -> Weights:
    """The weights `W1, b1, W2, b2, W3, b3`, float32: He-uniform `(inputs, outputs)` kernels, biases of zero."""
    rng = np.random.default_rng(seed)
    sizes = (shape.width, shape.hidden, shape.hidden, 1)
    weights = []
    for inputs, outputs in pairwise(sizes):
        limit = np.sqrt(6 / inputs)
        weights += [rng.uniform(-limit, limit, (inputs, outputs)).astype("float32"), np.zeros(outputs, "float32")]
    return weights


def batch(shape: Shape, seed: int) -> Batch:
    """Tasks that share most of what there is to learn: each is a linear function near one common to all."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(shape.width)
    slopes = (common + 0.5 * rng.standard_normal((shape.tasks, shape.width))) / ROW_NORM  # (T, D)
    x = rng.standard_normal((shape.tasks, shape.support + shape.query, shape.width))
    x *= ROW_NORM / np.sqrt(shape.width)
    y = np.einsum("trd,td->tr", x, slopes)
    x, y = x.astype("float32"), y.astype("float32")
    support_x, query_x = np.split(x, [shape.support], axis=1)
    support_y, query_y = np.split(y, [shape.support], axis=1)
    return Batch(*map(np.ascontiguousarray, (support_x, support_y, query_x, query_y)))
