import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.optimizers import RowSparseSGD


def steps(optimizer, *gradients):
    """The table after each step; a gradient is a dict of rows, whose values may be several."""
    table = keras.Variable(np.zeros((3, 1), np.float32))
    seen = []
    for gradient in gradients:
        pairs = [(row, value) for row, values in gradient.items() for value in values]
        rows, values = (list(part) for part in zip(*pairs, strict=True))
        slices = tf.IndexedSlices(tf.constant(values)[:, None], tf.constant(rows), tf.constant([3, 1]))
        optimizer.apply_gradients([(slices, table)])
        seen.append(table.numpy().ravel().tolist())
    return seen


def test_a_row_moves_down_the_sum_of_its_gradients():
    assert steps(RowSparseSGD(0.5), {2: [1.0, 3.0], 0: [-1.0]}) == [[0.5, 0.0, -2.0]]


def test_the_momentum_of_a_row_waits_for_its_next_visit():
    seen = steps(RowSparseSGD(1.0, momentum=0.5), {1: [4.0]}, {0: [1.0]}, {1: [0.0], 0: [1.0]})
    assert seen == [
        [0.0, -4.0, 0.0],
        [-1.0, -4.0, 0.0],  # Keras would move row 1 by half of its last step.
        [-1.0 - 1.5, -4.0 - 2.0, 0.0],
    ]


def test_nesterov_looks_one_step_ahead():
    # Step: 0.5 * velocity - gradient, velocity being -4 and then 0.5 * -4 - 2 = -4.
    assert steps(RowSparseSGD(1.0, 0.5, True), {1: [4.0]}, {1: [2.0]}) == [[0, -6.0, 0], [0, -6.0 - 4.0, 0]]


def test_momentum_keeps_the_rule_of_keras():
    with pytest.raises(ValueError, match="momentum"):
        RowSparseSGD(momentum=2.0)
