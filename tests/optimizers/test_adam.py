import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.optimizers import RowSparseAdam, RowSparseAdamW


def apply(optimizer, table, rows, values):
    slices = tf.IndexedSlices(tf.constant(values)[:, None], tf.constant(rows), tf.constant([3, 1]))
    optimizer.apply_gradients([(slices, table)])


def test_moments_wait_for_the_next_visit_and_the_bias_goes_by_the_step():
    table = keras.Variable(np.zeros((3, 1), np.float32))
    optimizer = RowSparseAdam(0.1, beta_1=0.5, beta_2=0.75, epsilon=0.0)
    apply(optimizer, table, [1, 1], [1.0, 3.0])
    # Mean 0.5 * 4 = 2 of 1 - 0.5, square 0.25 * 16 = 4 of 1 - 0.75: a step of 0.1 * 4 / 4.
    assert table.numpy().ravel().tolist() == pytest.approx([0, -0.1, 0])
    apply(optimizer, table, [0], [1.0])
    # The same of row 0 at step 2: mean 0.5 of 1 - 0.25, square 0.25 of 1 - 0.5625.
    first = 0.1 * (0.5 / 0.75) / (0.25 / 0.4375) ** 0.5
    assert table.numpy().ravel().tolist() == pytest.approx([-first, -0.1, 0])
    apply(optimizer, table, [1], [2.0])
    # Mean 0.5 * 2 + 0.5 * 2 = 2 of 1 - 0.125, square 0.75 * 4 + 0.25 * 4 = 4 of 1 - 0.421875.
    third = 0.1 * (2 / 0.875) / (4 / 0.578125) ** 0.5
    assert table.numpy().ravel().tolist() == pytest.approx([-first, -0.1 - third, 0])
    mean, square = (slot.numpy().ravel().tolist() for slot in optimizer.variables if slot.shape == table.shape)
    assert mean == [0.5, 2.0, 0.0]
    assert square == [0.25, 4.0, 0.0]


def test_amsgrad_divides_by_the_largest_square_of_the_row():
    table = keras.Variable(np.zeros((3, 1), np.float32))
    optimizer = RowSparseAdam(0.1, beta_1=0.0, beta_2=0.5, epsilon=0.0, amsgrad=True)
    apply(optimizer, table, [2], [4.0])  # Square 8.
    before = float(table[2, 0])
    apply(optimizer, table, [2], [1.0])  # Square 4.5, the largest remains 8; bias 1 - 0.25.
    assert float(table[2, 0]) - before == pytest.approx(-0.1 * 0.75**0.5 * 1 / 8**0.5)


def test_only_visited_rows_decay():
    table = keras.Variable(np.full((3, 1), 2.0, np.float32))
    apply(RowSparseAdamW(0.5, weight_decay=0.25), table, [1, 1], [0.0, 0.0])
    assert table.numpy().ravel().tolist() == [2.0, 2.0 - 2.0 * 0.25 * 0.5, 2.0]


def test_adamw_needs_its_decay():
    with pytest.raises(ValueError, match="`weight_decay` must be a float"):
        RowSparseAdamW(weight_decay=None)


def test_adamw_is_an_adamw_of_keras():
    optimizer = RowSparseAdamW()
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert optimizer.get_config().items() >= {"learning_rate": pytest.approx(0.001), "weight_decay": 0.004}.items()
