"""Training on two logical devices, which must be set before TensorFlow starts: so in a process of its own."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.meta.replicas import scaled

SCRIPT = """
import contextlib, json, sys
import tensorflow as tf

devices, feedback, kind, algorithm, optimizer = sys.argv[1:]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
import keras
import tfmetarec as tmr

data = tmr.data.load("synthetic", n_users=48, n_items=40, interactions_per_user=9, feedback=feedback, seed=0)
vocabulary = tmr.data.Vocabulary.fit(data)
negatives = {"negatives": 16} if feedback == "implicit" else {}
episodes = tmr.tasks.user_episodes(
    data, vocabulary, support=(0, 4), query=4, tasks_per_batch=8, steps_per_epoch=6, seed=0, **negatives
)
names = [f"CPU:{index}" for index in range(int(devices))]
with tf.distribute.MirroredStrategy(names).scope() if len(names) > 1 else contextlib.nullcontext():
    made = tmr.models.TwoTower if kind == "two_tower" else tmr.models.Ranker
    model = made(vocabulary, 8, dropout=0.0, id_dropout=0.0, seed=0)
    learner = getattr(tmr.meta, algorithm)(model, inner_learning_rate=0.05)
    classes = {"Adam": keras.optimizers.Adam, "RowSparseAdam": tmr.optimizers.RowSparseAdam}
    learner.compile(classes[optimizer](0.01), metrics=[keras.metrics.MeanAbsoluteError()])
history = learner.fit(episodes, epochs=3, verbose=0).history
print(json.dumps(history))
"""
CASES = [
    ("explicit", "two_tower", "MAML", "RowSparseAdam"),
    pytest.param("implicit", "two_tower", "MAML", "Adam", marks=pytest.mark.slow),
    pytest.param("explicit", "ranker", "Reptile", "Adam", marks=pytest.mark.slow),
    pytest.param("implicit", "ranker", "ANIL", "RowSparseAdam", marks=pytest.mark.slow),
    pytest.param("explicit", "two_tower", "MetaSGD", "Adam", marks=pytest.mark.slow),
]


def history_on(devices, *case):
    command = [sys.executable, "-c", SCRIPT, str(devices), *case]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("feedback", "kind", "algorithm", "optimizer"), CASES)
def test_two_devices_follow_one(feedback, kind, algorithm, optimizer):
    case = (feedback, kind, algorithm, optimizer)
    one, two = history_on(1, *case), history_on(2, *case)
    assert one.keys() == two.keys() == {"loss", "mean_absolute_error"}
    for name, values in one.items():
        # Adam turns what rounding does to a gradient near 0 into whole steps.
        np.testing.assert_allclose(two[name], values, rtol=1e-3)
    assert one["loss"][2] < one["loss"][0]


def test_tasks_that_cannot_be_shared_out_evenly_are_refused(explicit):
    class Three:
        num_replicas_in_sync = 4

    with pytest.raises(ValueError, match="`tasks_per_batch` must be a multiple of the 4 replicas. Received: 6"):
        tmr.meta.replicas.share_out(explicit.episodes.dataset(), Three())


def test_rows_of_a_table_stay_rows():
    rows = tf.IndexedSlices(tf.constant([[2.0], [4.0]]), tf.constant([1, 1]), tf.constant([3, 1]))
    half = scaled(rows, 0.5)
    assert half.indices.numpy().tolist() == [1, 1]
    assert tf.convert_to_tensor(half).numpy().tolist() == [[0.0], [3.0], [0.0]]
    assert scaled(tf.constant([4.0]), 0.25).numpy().tolist() == [1.0]


@pytest.mark.parametrize("kind", ["two_tower", pytest.param("ranker", marks=pytest.mark.slow)])
def test_half_precision_follows_full_precision(implicit, kind):
    losses = {}
    for policy in ("float32", "mixed_bfloat16"):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            made = tmr.models.TwoTower if kind == "two_tower" else tmr.models.Ranker
            model = made(implicit.vocabulary, 8, dropout=0.0, id_dropout=0.0, seed=0)
            learner = tmr.meta.MAML(model, inner_steps=2, inner_learning_rate=0.1)
        finally:
            keras.config.set_dtype_policy(before)
        learner.compile(keras.optimizers.Adam(0.01))
        losses[policy] = learner.fit(implicit.episodes, epochs=4, verbose=0).history["loss"]
    np.testing.assert_allclose(losses["mixed_bfloat16"], losses["float32"], rtol=0.02)
    assert losses["mixed_bfloat16"] != losses["float32"]
