import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.models.embedding import RowSparseEmbedding

ROWS, WIDTH = 977, 3  # A number of rows that no other shape in a graph has.


def table(**options):
    layer = RowSparseEmbedding(ROWS, WIDTH, keras.initializers.RandomUniform(seed=0), **options)
    layer.build()
    return layer


def whole_tables(function, *signature):
    """The operations of a traced function that make a tensor as large as the table."""
    graph = tf.function(function, autograph=False).get_concrete_function(*signature).graph
    operations = graph.get_operations()
    assert not [op.type for op in operations if op.type.endswith("PartitionedCall")], "the walk sees no nested graphs"
    return [op.type for op in operations if any(ROWS in (out.shape.as_list() or ()) for out in op.outputs if out.shape)]


IDS = tf.TensorSpec((None, 2), tf.int32)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
def test_a_row_is_looked_up_whatever_the_type_of_its_id(dtype):
    layer = table()
    ids = np.array([[3, 0], [200, 3]], dtype)
    np.testing.assert_array_equal(layer(ids), layer.embeddings.numpy()[ids.astype(int)])


def test_it_answers_as_the_layer_of_keras():
    ours, theirs = table(), keras.layers.Embedding(ROWS, WIDTH)
    theirs.build()
    theirs.set_weights(ours.get_weights())
    ids = np.array([[3, 0, 976]])
    np.testing.assert_array_equal(ours(ids), theirs(ids))
    assert ours.compute_output_shape((4, 7)) == theirs.compute_output_shape((4, 7))


def test_no_operation_is_as_large_as_the_table():
    layer = table()

    def loss_and_gradient(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids) ** 2) + tf.reduce_sum(layer(ids[:, 0]))
        gradient = tape.gradient(loss, layer.embeddings.value)
        return loss, gradient.indices, gradient.values

    assert not whole_tables(layer, IDS)
    assert not whole_tables(loss_and_gradient, IDS)


def test_the_walk_would_see_a_whole_table():
    layer = keras.layers.Embedding(ROWS, WIDTH)
    layer.build()
    assert "ReadVariableOp" in whole_tables(layer, IDS)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_casts_the_rows_and_not_the_table(policy):
    layer = table(dtype=policy)
    assert layer.embeddings.dtype == "float32"
    assert layer(np.array([1])).dtype == tf.as_dtype(policy.removeprefix("mixed_"))
    assert not whole_tables(layer, IDS)

    outer = keras.Sequential([layer, keras.layers.Dense(1, dtype=policy)])
    outer.build((None, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(outer(np.array([[1, 5]])))
    gradient = tape.gradient(loss, layer.embeddings.value)
    assert isinstance(gradient, tf.IndexedSlices)
    assert gradient.dtype == tf.float32
    assert not whole_tables(outer, IDS)


def test_a_stateless_call_looks_up_in_the_tensor_it_is_given():
    layer = table()
    other = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    (found,), _ = layer.stateless_call([other], [], np.array([2]))
    np.testing.assert_array_equal(found, [6, 7, 8])
    with keras.StatelessScope([(layer.embeddings, tf.constant(other))]):
        np.testing.assert_array_equal(layer(np.array([2])), [[6, 7, 8]])
    assert not np.array_equal(layer(np.array([2])), [[6, 7, 8]])


def test_symbolic_inputs_make_a_functional_model():
    inputs = keras.Input((2,), dtype="int32")
    layer = table()
    outputs = layer(inputs)
    assert outputs.shape == (None, 2, WIDTH)
    assert outputs.dtype == "float32"
    found = keras.Model(inputs, outputs).predict(np.array([[4, 1]]), verbose=0)
    np.testing.assert_array_equal(found[0], layer.embeddings.numpy()[[4, 1]])


def test_tasks_look_up_together_and_the_gradient_stays_a_list_of_rows():
    layer = table()

    def one(own):
        return tf.reduce_sum(layer(own)) + 0 * tf.reduce_sum(layer(np.array([2])))

    def gradient(ids):
        with tf.GradientTape() as tape:
            each = tf.vectorized_map(one, ids, fallback_to_while_loop=False)
            loss = tf.reduce_sum(each * [1.0, 10.0])
        return tape.gradient(loss, layer.embeddings.value)

    slices = tf.function(gradient, autograph=False)(np.array([[4, 1], [4, 9]]))
    assert isinstance(slices, tf.IndexedSlices)
    assert not whole_tables(lambda ids: gradient(ids).values, tf.TensorSpec((2, 2), tf.int32))
    dense = tf.convert_to_tensor(slices).numpy()
    assert dense[[4, 1, 9]].tolist() == [[11.0] * 3, [1.0] * 3, [10.0] * 3]
    assert not dense[[0, 2, 976]].any()


def test_an_exported_table_answers_in_the_session_loader(tmp_path):
    model = keras.Sequential([keras.Input((2,), dtype="int32", name="ids"), table(name="table")])
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((None, 2), tf.int32, name="ids")]
    archive.add_endpoint("serve", lambda ids: {"rows": model(ids)}, input_signature=signature)
    archive.write_out(tmp_path / "1", verbose=False)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        served = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1")).signature_def["serve"]
        rows = session.run(served.outputs["rows"].name, {served.inputs["ids"].name: [[4, 976]]})
    np.testing.assert_array_equal(rows, model(np.array([[4, 976]])))


def test_the_layer_comes_back_from_its_config():
    layer = table(name="tags", trainable=False, dtype="mixed_bfloat16")
    config = json.loads(json.dumps(layer.get_config()))
    again = RowSparseEmbedding.from_config(config)
    assert again.get_config() == config
    assert (again.name, again.trainable, again.compute_dtype) == ("tags", False, "bfloat16")
    again.build()
    np.testing.assert_array_equal(again.embeddings, layer.embeddings)


def test_the_weights_of_the_layer_of_keras_load_into_it(tmp_path):
    def model(kind):
        return keras.Sequential([keras.Input((2,), dtype="int32"), kind(5, 2, name="table")])

    theirs, ours = model(keras.layers.Embedding), model(RowSparseEmbedding)
    ours.set_weights(theirs.get_weights())
    np.testing.assert_array_equal(ours.layers[0].embeddings, theirs.layers[0].embeddings)
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.layers[0]) is RowSparseEmbedding
    np.testing.assert_array_equal(again.layers[0].embeddings, theirs.layers[0].embeddings)


@pytest.mark.parametrize(
    ("option", "given", "rule"),
    [
        ("embeddings_regularizer", "l2", "None: it would touch every row in every step"),
        ("embeddings_constraint", "unit_norm", "None: it would touch every row in every step"),
        ("mask_zero", True, "False: TensorFlow Serving's batching corrupts masks; give a length, see `ListPooling`"),
        ("lora_rank", 2, "None: it would touch every row in every step"),
        ("quantization_config", "int8", "None: this layer is not quantized"),
    ],
)
def test_what_would_be_ignored_or_touch_every_row_is_refused(option, given, rule):
    with pytest.raises(ValueError, match=re.escape(f"`{option}` must be {rule}. Received: {option}={given}")):
        RowSparseEmbedding(5, 2, **{option: given})


def test_a_quantized_dtype_is_refused():
    with pytest.raises(ValueError, match=r"`dtype` must be .* not quantized. Received: dtype=int8_from_float32"):
        RowSparseEmbedding(5, 2, dtype="int8_from_float32")


@pytest.mark.parametrize("method", ["enable_lora", "quantize"])
def test_methods_that_replace_the_table_are_refused(method):
    with pytest.raises(NotImplementedError, match=f"`{method}` is not for a RowSparseEmbedding"):
        getattr(table(), method)("int8")


@pytest.mark.parametrize("ids", [tf.ragged.constant([[1], [2, 3]]), tf.sparse.from_dense([[1, 2]])])
def test_ids_must_be_dense(ids):
    with pytest.raises(TypeError, match=r"ids must be a dense tensor.* Received: \w*Tensor"):
        table().call(ids)
