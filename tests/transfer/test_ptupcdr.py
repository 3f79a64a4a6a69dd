import keras
import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.transfer.cross_domain import Domains
from tfmetarec.transfer.ptupcdr import PTUPCDR, PersonalBridge


def carried(bridge, vector, items, length):
    """The bridge of one user, in NumPy and by the equations of the paper."""
    w = {variable.path.split("/", 1)[1]: variable.numpy() for variable in bridge.variables}
    hidden = np.maximum(items[:length] @ w["attention_hidden/kernel"] + w["attention_hidden/bias"], 0)
    weight = np.exp(hidden @ w["attention/kernel"])[:, 0]
    characteristic = (weight / weight.sum()) @ items[:length]
    inner = np.maximum(characteristic @ w["meta_hidden/kernel"] + w["meta_hidden/bias"], 0)
    matrix = (inner @ w["meta/kernel"] + w["meta/bias"]).reshape(len(vector), len(vector))
    return vector @ matrix


@pytest.fixture
def bridge():
    made = PersonalBridge(3, 4, seed=1)
    rng = np.random.default_rng(0)
    made.set_weights([rng.normal(size=weight.shape) for weight in made.get_weights()])
    return made


def test_a_vector_is_carried_by_the_equations_of_the_paper(bridge):
    rng = np.random.default_rng(1)
    vector, items = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(2, 5, 3)).astype(np.float32)
    found = bridge(vector, items, np.array([5, 2])).numpy()
    for user, length in ((0, 5), (1, 2)):
        np.testing.assert_allclose(found[user], carried(bridge, vector[user], items[user], length), rtol=1e-4)


def test_the_order_of_the_items_and_the_padding_change_nothing(bridge):
    rng = np.random.default_rng(2)
    vector, items = rng.normal(size=(1, 3)).astype(np.float32), rng.normal(size=(1, 4, 3)).astype(np.float32)
    other = items[:, [2, 0, 1, 3]].copy()
    other[:, 3] = 99
    three = np.array([3])
    np.testing.assert_allclose(bridge(vector, items, three), bridge(vector, other, three), rtol=1e-4)


def test_at_first_everybody_is_carried_almost_as_is():
    vector = np.array([[1.0, -2.0, 3.0]], np.float32)
    items = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(PersonalBridge(3, 8)(vector, items, np.array([6])), vector, atol=0.5)
    np.testing.assert_allclose(PersonalBridge(3, 8)(vector, items, np.array([0])), vector, atol=1e-6)


def test_the_gradient_reaches_attention_and_meta_network(bridge):
    items = tf.random.stateless_normal((2, 4, 3), (1, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(bridge(tf.ones((2, 3)), items, tf.constant([4, 3]))))
    gradients = tape.gradient(loss, [variable.value for variable in bridge.trainable_variables])
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_a_bridge_comes_back_from_its_config():
    made = PersonalBridge(3, 4, seed=1)
    again = PersonalBridge.from_config(made.get_config())
    for one, two in zip(made.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert keras.saving.get_registered_name(PersonalBridge) == "tfmetarec>PersonalBridge"


@pytest.fixture(scope="module")
def shop():
    data = tmr.data.load("synthetic", n_users=80, n_items=40, n_groups=2, interactions_per_user=10)
    odd = pl.col("item_id") % 2 == 1
    return data.filter(odd), data.filter(~odd)


def test_cold_households_get_the_items_of_their_group(shop):
    source, target = shop
    cold = pl.col("user_id") < 20
    domains = Domains.of(source, target.filter(~cold))
    method = PTUPCDR(4, 8, epochs=8, learning_rate=0.01, batch_size=16).fit(domains, target.filter(cold))
    users = [user for user in range(20) if user in set(source.table["user_id"])]
    scores = method.score(method.adapt(domains.support(users)), domains.candidates())
    planted = tmr.data.sources.synthetic.truth(80, 40, 2)
    items = domains.vocabulary.item_ids[domains.target_rows].astype(int)
    own = planted.item_group[items] == planted.user_group[users][:, None]
    assert scores[own].mean() > scores[~own].mean()
    best = np.take_along_axis(own, np.argmax(scores, axis=1)[:, None], axis=1)
    assert best.mean() > 0.9


def test_the_last_items_are_seen(shop):
    method = PTUPCDR(longest=2)
    support = Domains.of(*shop).support([0])._replace(length=np.array([4]))
    items, length = method._last(support)
    assert length.tolist() == [2]
    assert items.tolist() == support.item["item_id"][:, 2:4].tolist()
