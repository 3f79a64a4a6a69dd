"""What every row-sparse optimizer keeps to, whatever its rule."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmetarec.models.embedding import RowSparseEmbedding
from tfmetarec.optimizers import RowSparseAdagrad, RowSparseAdam, RowSparseAdamW, RowSparseSGD
from tfmetarec.optimizers.row_sparse import RowSparseOptimizer, sum_duplicates

ROWS = 977  # A number of rows that no other shape in a graph has.
# Ours, and the optimizer of Keras with the same rule.
PAIRS = {
    "sgd": (lambda **o: RowSparseSGD(0.1, **o), lambda **o: keras.optimizers.SGD(0.1, **o)),
    "momentum": (lambda **o: RowSparseSGD(0.1, 0.9, **o), lambda **o: keras.optimizers.SGD(0.1, 0.9, **o)),
    "nesterov": (lambda **o: RowSparseSGD(0.1, 0.9, True, **o), lambda **o: keras.optimizers.SGD(0.1, 0.9, True, **o)),
    "adagrad": (lambda **o: RowSparseAdagrad(0.1, **o), lambda **o: keras.optimizers.Adagrad(0.1, **o)),
    "adam": (lambda **o: RowSparseAdam(0.1, **o), lambda **o: keras.optimizers.Adam(0.1, **o)),
    "amsgrad": (
        lambda **o: RowSparseAdam(0.1, amsgrad=True, **o),
        lambda **o: keras.optimizers.Adam(0.1, amsgrad=True, **o),
    ),
    "adamw": (
        lambda weight_decay=0.3, **o: RowSparseAdamW(0.1, weight_decay, **o),
        lambda weight_decay=0.3, **o: keras.optimizers.AdamW(0.1, weight_decay, **o),
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def slices(rows, values, size):
    values = np.asarray(values, np.float32)
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows, tf.int32), tf.constant([size, *values.shape[1:]]))


def train(optimizer, gradients, start):
    variables = [keras.Variable(value) for value in start]
    for each in gradients:
        optimizer.apply_gradients(zip(each, variables, strict=True))
    return [variable.numpy() for variable in variables]


def drawn(rows_per_step, size=5, steps=6):
    """Gradients of a table and of a dense weight, first as slices with duplicates and then as dense tensors."""
    rng = np.random.default_rng(0)
    sparse = []
    for _ in range(steps):
        rows = rows_per_step(rng, size)
        sparse.append(
            (slices(rows, rng.normal(size=(len(rows), 2)), size), tf.constant(rng.normal(size=3), tf.float32))
        )
    dense = [(tf.convert_to_tensor(table), weight) for table, weight in sparse]
    start = [rng.normal(size=(size, 2)).astype("float32"), np.ones(3, np.float32)]
    return sparse, dense, start


def every_row(rng, size):
    return rng.permutation([*range(size), *rng.integers(0, size, 4)])


OPTIONS = [{}, {"clipnorm": 0.7}, {"global_clipnorm": 1.1}, {"clipvalue": 0.3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_where_every_row_is_touched_it_is_the_optimizer_of_keras(pair, options):
    sparse, dense, start = drawn(every_row)
    ours, theirs = pair[0](**options), pair[1](**options)
    for found, expected in zip(train(ours, sparse, start), train(theirs, dense, start), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for found, expected in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        assert found.path.split("/")[-1] == expected.path.split("/")[-1] or "variable" in found.path


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_without_a_memory_that_fades_it_is_the_optimizer_of_keras_whatever_rows_come(name):
    sparse, dense, start = drawn(lambda rng, size: rng.integers(0, size, 3))
    for found, expected in zip(
        train(PAIRS[name][0](), sparse, start), train(PAIRS[name][1](), dense, start), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_dense_gradients_take_the_way_of_keras(pair):
    _, dense, start = drawn(every_row)
    for found, expected in zip(train(pair[0](), dense, start), train(pair[1](), dense, start), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rows_that_are_not_in_the_batch_and_their_slots_stay_to_the_bit(pair):
    optimizer = pair[0]()
    table = keras.Variable(np.random.default_rng(0).normal(size=(6, 2)).astype("float32"))
    optimizer.apply_gradients([(slices([0, 1, 2, 3, 4, 5], np.ones((6, 2)), 6), table)])
    memory = [table, *(slot for slot in optimizer.variables if slot.shape == table.shape)]
    before = [variable.numpy() for variable in memory]
    optimizer.apply_gradients([(slices([4, 1, 4], np.full((3, 2), 0.5), 6), table)])
    for old, variable in zip(before, memory, strict=True):
        changed = (old != variable.numpy()).all(axis=1)
        np.testing.assert_array_equal(old[[0, 2, 3, 5]], variable.numpy()[[0, 2, 3, 5]])
        # AMSGrad's largest square need not grow.
        assert changed[[1, 4]].all() or "velocity_hat" in variable.path


def test_duplicates_are_summed_before_anything_else():
    summed = sum_duplicates(slices([4, 1, 4, 4], [[1.0], [2.0], [4.0], [8.0]], 6))
    assert summed.indices.numpy().tolist() == [4, 1]
    assert summed.values.numpy().tolist() == [[13.0], [2.0]]


def move(gradient, also=None, **options):
    """How far one step of SGD with learning rate 1 moves a table of zeros, and a weight of one number."""
    table, weight = keras.Variable(np.zeros((3, 1), np.float32)), keras.Variable(np.zeros(1, np.float32))
    pairs = [(gradient, table), (tf.constant([also or 0.0]), weight)]
    RowSparseSGD(1.0, **options).apply_gradients(pairs)
    return (-table.numpy()).ravel().tolist(), float(-weight.numpy()[0])


def test_a_norm_counts_the_sum_of_duplicates():
    gradient = slices([2, 0, 2], [[1.5], [4.0], [1.5]], 3)  # (4, 0, 3), of norm 5
    assert move(gradient, 2.0, clipnorm=1.0) == (pytest.approx([0.8, 0.0, 0.6]), pytest.approx(1.0))


def test_the_global_norm_counts_every_gradient():
    gradient = slices([2, 0, 2], [[1.0], [1.0], [1.0]], 3)  # (1, 0, 2), and 2 beside it: norm 3
    assert move(gradient, 2.0, global_clipnorm=1.5) == (pytest.approx([0.5, 0.0, 1.0]), pytest.approx(1.0))


def test_values_are_clipped_after_duplicates_are_summed():
    gradient = slices([2, 0, 2], [[0.75], [-3.0], [0.75]], 3)
    assert move(gradient, 0.5, clipvalue=1.0) == ([-1.0, 0.0, 1.0], 0.5)


def test_weights_decay_in_the_rows_of_the_batch_alone():
    table = keras.Variable(np.full((3, 1), 8.0, np.float32))
    RowSparseSGD(0.5, weight_decay=0.25).apply_gradients([(slices([2, 2], [[1.0], [1.0]], 3), table)])
    assert table.numpy().ravel().tolist() == [8.0, 8.0, 8.0 - 8.0 * 0.25 * 0.5 - 2.0 * 0.5]


def test_a_table_may_be_left_out_of_weight_decay(pair):
    optimizer, without = pair[0](weight_decay=0.5), pair[0](weight_decay=0.0)
    table, other = (keras.Variable(np.ones((3, 1), np.float32), name=name) for name in ("table", "other"))
    optimizer.exclude_from_weight_decay(var_names=["table"])
    gradient = slices([2], [[1.0]], 3)
    optimizer.apply_gradients([(gradient, table)])
    without.apply_gradients([(gradient, other)])
    np.testing.assert_array_equal(table, other)


REFUSED = [
    ("use_ema", True, "False: an average of the weights touches every row in every step"),
    ("gradient_accumulation_steps", 4, "None: accumulated gradients are as large as the table; take larger batches"),
    (
        "loss_scale_factor",
        8.0,
        "None: gradients of rows are not unscaled; train in bfloat16, which needs no scaling",
    ),
]


@pytest.mark.parametrize(("option", "given", "rule"), REFUSED)
def test_options_that_touch_every_row_are_refused(pair, option, given, rule):
    with pytest.raises(ValueError, match=re.escape(f"`{option}` must be {rule}. Received: {option}={given}")):
        pair[0](**{option: given})


def test_a_rule_of_ones_own_must_say_how_rows_move():
    class Rule(RowSparseOptimizer, keras.optimizers.SGD):
        pass

    with pytest.raises(NotImplementedError, match=r"Rule must say how rows move\."):
        Rule(0.1).apply_gradients([(slices([0], [[1.0]], 2), keras.Variable(np.zeros((2, 1), np.float32)))])


def test_an_optimizer_comes_back_from_its_config(pair):
    optimizer = pair[0](clipnorm=0.5, name="outer")
    saved = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(saved)
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert saved["registered_name"] == f"tfmetarec>{type(optimizer).__name__}"


def test_a_schedule_sets_the_learning_rate():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.5])
    table = keras.Variable(np.zeros((2, 1), np.float32))
    optimizer = RowSparseSGD(schedule)
    moved = []
    for _ in range(3):
        optimizer.apply_gradients([(slices([1], [[1.0]], 2), table)])
        moved.append(-float(table[1, 0]))
    assert moved == [1.0, 2.0, 2.5]


class Dot(keras.Model):
    """Users' vectors times items', and a weight between them."""

    def __init__(self, rows=ROWS, kind=RowSparseEmbedding, **options):
        super().__init__(**options)
        self.rows = rows
        self.users = kind(rows, 3, keras.initializers.RandomUniform(seed=0), name="users")
        self.items = kind(rows, 3, keras.initializers.RandomUniform(seed=1), name="items")
        self.dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(2))

    def call(self, inputs):
        items = keras.ops.mean(self.items(inputs["items"]), 1)
        return keras.ops.sum(self.dense(self.users(inputs["user"])) * items, -1)

    def get_config(self):
        return {"rows": self.rows, "name": self.name}


def batch(seed, size=8, rows=ROWS):
    rng = np.random.default_rng(seed)
    ids = {"user": rng.integers(0, rows, size), "items": rng.integers(0, rows, (size, 4))}
    return {name: value.astype("int32") for name, value in ids.items()}, rng.normal(size=size).astype("float32")


def compiled(optimizer, jit_compile=False, **options):
    model = Dot(**options)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    model.train_on_batch(*batch(0, rows=model.rows))
    return model


def whole_tables(model):
    """The operations of a training step that make a tensor as large as a table."""
    model.make_train_function()
    signature = tf.nest.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), batch(0))
    graph = tf.function(model.train_step, autograph=False).get_concrete_function(signature).graph
    operations = graph.get_operations()
    assert not [op.type for op in operations if op.type.endswith(("PartitionedCall", "If"))]
    return {op.type for op in operations if any(ROWS in (out.shape.as_list() or ()) for out in op.outputs if out.shape)}


def test_a_training_step_of_keras_makes_nothing_as_large_as_a_table(pair):
    assert not whole_tables(compiled(pair[0]()))


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_nor_does_clipping(options):
    assert not whole_tables(compiled(RowSparseAdamW(**options)))


def test_the_walk_would_see_keras_read_and_fill_its_tables():
    assert "ReadVariableOp" in whole_tables(compiled(RowSparseSGD(), kind=keras.layers.Embedding))
    assert whole_tables(compiled(PAIRS["adam"][1]())) & {"ReadVariableOp", "UnsortedSegmentSum"}


def test_fit_leaves_the_rows_that_no_batch_holds(pair):
    model = Dot()
    model.users.build()
    before = model.users.embeddings.numpy()
    model.compile(pair[0](), "mse")
    inputs, labels = batch(3, size=32)
    model.fit(inputs, labels, batch_size=8, epochs=2, verbose=0)
    changed = (before != model.users.embeddings.numpy()).any(axis=1)
    assert sorted(np.flatnonzero(changed)) == sorted(set(inputs["user"]))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_run_saved_and_resumed_is_the_unbroken_run_to_the_bit(pair, suffix, tmp_path, values_of):
    unbroken = compiled(pair[0](), name="dot")
    for seed in range(1, 3):
        unbroken.train_on_batch(*batch(seed))
    path = tmp_path / f"dot{suffix}"
    if suffix == ".keras":
        unbroken.save(path)
        resumed = keras.saving.load_model(path, custom_objects={"Dot": Dot})
        assert type(resumed.optimizer) is type(unbroken.optimizer)
    else:
        unbroken.save_weights(path)
        resumed = Dot(name="dot")
        resumed.compile(pair[0](), "mse", jit_compile=False)
        resumed(batch(0)[0])
        resumed.optimizer.build(resumed.trainable_variables)
        resumed.load_weights(path)
    for model in (unbroken, resumed):
        for seed in range(3, 6):
            model.train_on_batch(*batch(seed))
    for expected, found in zip(values_of(unbroken), values_of(resumed), strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize("name", ["nesterov", "adagrad", "amsgrad"])
def test_xla_finds_the_same_weights(name, values_of):
    runs = []
    for jit_compile in (False, True):
        model = compiled(PAIRS[name][0](clipnorm=0.01), jit_compile, rows=40)
        for seed in range(3):
            model.train_on_batch(*batch(seed, rows=40))
        runs.append(values_of(model))
    for plain, fast in zip(*runs, strict=True):
        np.testing.assert_allclose(plain, fast, rtol=1e-4, atol=1e-5)


DISTRIBUTED = """
import tfmetarec, json, sys, keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tfmetarec.models import embedding
from tfmetarec.optimizers import RowSparseAdagrad, RowSparseAdamW, RowSparseSGD

def run(make, scope):
    with scope:
        table = embedding.RowSparseEmbedding(977, 3, keras.initializers.RandomUniform(seed=0))
        dense = keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(1))
        model = keras.Sequential([keras.Input((2,), dtype="int32"), table, keras.layers.Flatten(), dense])
        model.compile(make(), "mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 12, (24, 2)).astype("int32"), rng.normal(size=(24, 1)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((ids, labels)).batch(8)
    model.fit(data, verbose=0, shuffle=False)
    return model

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for make in (lambda: RowSparseSGD(0.1, 0.9), RowSparseAdagrad, lambda: RowSparseAdamW(amsgrad=True)):
    alone, together = run(make, tf.distribute.get_strategy().scope()), run(make, strategy.scope())
    for one, two in zip(alone.variables + alone.optimizer.variables, together.variables + together.optimizer.variables):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    copies = strategy.experimental_local_results(together.layers[0].embeddings.value)
    assert len(copies) == 2 and (copies[0].numpy() == copies[1].numpy()).all()
    step = tf.function(lambda data: strategy.run(together.train_step, args=(data,)), autograph=False)
    signature = (tf.TensorSpec((8, 2), tf.int32), tf.TensorSpec((8, 1)))
    operations = step.get_concrete_function(signature).graph.get_operations()
    whole = {op.type for op in operations for out in op.outputs if out.shape and 977 in out.shape.as_list()}
    assert not whole, whole
print("as one")
"""


@pytest.mark.slow
def test_two_devices_train_as_one_and_read_no_table():
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", DISTRIBUTED],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert ran.stdout.strip().endswith("as one"), ran.stderr[-3000:]
