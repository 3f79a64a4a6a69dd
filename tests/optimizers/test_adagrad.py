import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.optimizers import RowSparseAdagrad


def test_duplicates_are_summed_and_then_squared():
    table = keras.Variable(np.zeros((4, 1), np.float32))
    optimizer = RowSparseAdagrad(0.5, initial_accumulator_value=7.0, epsilon=1e-7)
    slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [-3.0]]), tf.constant([3, 3, 0]), tf.constant([4, 1]))
    optimizer.apply_gradients([(slices, table)])
    # Row 3: gradient 3, squares 7 + 9 = 16, so 0.5 * 3 / 4. Squared one by one they were 7 + 1 + 4.
    assert table.numpy().ravel().tolist() == pytest.approx([0.375, 0.0, 0.0, -0.375])
    (squares,) = [slot for slot in optimizer.variables if slot.shape == table.shape]
    assert squares.numpy().ravel().tolist() == [16.0, 7.0, 7.0, 16.0]

    optimizer.apply_gradients([(slices, table)])
    assert table.numpy()[3, 0] == pytest.approx(-0.375 - 0.5 * 3 / 25**0.5)
    assert squares.numpy().ravel().tolist() == [25.0, 7.0, 7.0, 25.0]


def test_epsilon_stands_inside_the_root():
    table = keras.Variable(np.zeros((2, 1), np.float32))
    slices = tf.IndexedSlices(tf.constant([[3.0]]), tf.constant([1]), tf.constant([2, 1]))
    RowSparseAdagrad(1.0, initial_accumulator_value=0.0, epsilon=16.0).apply_gradients([(slices, table)])
    assert table.numpy()[1, 0] == pytest.approx(-3 / 5)
