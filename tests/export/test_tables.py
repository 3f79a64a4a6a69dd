import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.export.tables import Table

# The second column is as wide as a bias may be, the third is constant.
VALUES = np.array([[0.1, -7.0, 1.0], [-0.3, 0.0, 1.0], [0.2, 5.7, 1.0]], np.float32)


def test_eight_bits_are_exact_at_both_ends_of_a_column_and_half_a_step_off_at_most():
    table = Table(tf.constant(VALUES), "int8")
    whole = table.whole().numpy()
    assert table.codes.dtype == tf.int8
    steps = (VALUES.max(axis=0) - VALUES.min(axis=0)) / 254
    assert (np.abs(whole - VALUES) <= steps / 2 + 1e-6).all()
    np.testing.assert_allclose(whole.max(axis=0), VALUES.max(axis=0), atol=1e-6)
    np.testing.assert_allclose(whole.min(axis=0), VALUES.min(axis=0), atol=1e-6)
    np.testing.assert_array_equal(whole[:, 2], 1.0)


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_products_and_rows_are_those_of_the_decoded_table(weights):
    table = Table(tf.constant(VALUES), weights)
    query = np.array([[1.0, 2.0, 3.0], [-2.0, 0.5, 0.0]], np.float32)
    whole = table.whole().numpy()
    assert whole.dtype == np.float32
    np.testing.assert_allclose(table.products(tf.constant(query)), query @ whole.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(table.rows(tf.constant([[2, 0]])), whole[[[2, 0]]])


def test_values_that_a_variable_holds_already_are_not_stored_again():
    variable = tf.Variable(VALUES)
    assert Table(tf.constant(VALUES), "float32", variable).codes is variable


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_whole_numbers_are_not_rounded(weights):
    rows = tf.constant([[70_001], [3]])
    table = Table(rows, weights)
    assert table.whole().numpy().tolist() == [[70_001], [3]]
    assert table.rows(tf.constant([0])).dtype == tf.int32


def test_a_value_too_large_for_sixteen_bits_is_refused():
    with pytest.raises(ValueError, match="`weights` float16 must hold values up to 65504"):
        Table(tf.constant([[70_000.0]]), "float16")
