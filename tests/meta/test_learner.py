import itertools

import keras
import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfmetarec.data import Interactions, Vocabulary
from tfmetarec.meta import MAML, FineTuning, SampledSoftmax
from tfmetarec.models import Ranker, TwoTower
from tfmetarec.tasks import Support, domain_episodes, item_episodes, user_episodes


class Counting(MAML):
    """Counts how often Keras traces the training step."""

    traces = 0

    def meta_gradients(self, episode):
        self.traces += 1
        return super().meta_gradients(episode)


@pytest.fixture(scope="module")
def fitted(explicit, tmp_path_factory):
    """One run of `fit` with validation, a metric and Keras's own callbacks; queries of 4 rows padded to 5."""
    options = {"support": (0, 4), "query": 5, "tasks_per_batch": 6, "steps_per_epoch": 2}
    training = user_episodes(explicit.data, explicit.vocabulary, seed=0, **options)
    validation = user_episodes(explicit.data, explicit.vocabulary, seed=1, **options)
    folder = tmp_path_factory.mktemp("fitted")
    learner = Counting(TwoTower(explicit.vocabulary, 4), inner_learning_rate=0.1)
    learner.compile(keras.optimizers.Adam(0.01), metrics=[keras.metrics.MeanAbsoluteError()])
    history = learner.fit(
        training,
        epochs=3,
        validation_data=validation,
        verbose=0,
        callbacks=[
            keras.callbacks.TensorBoard(folder / "logs", update_freq=1),
            keras.callbacks.BackupAndRestore(folder / "backup"),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.ReduceLROnPlateau(patience=1),
        ],
    )
    return learner, validation, history.history, folder


def test_history_holds_the_losses_and_metrics_of_both_parts(fitted):
    _, _, history, folder = fitted
    names = {"loss", "mean_absolute_error", "val_loss", "val_mean_absolute_error"}
    assert names <= set(history)
    assert all(len(history[name]) == 3 and np.isfinite(history[name]).all() for name in names)
    assert len((folder / "log.csv").read_text().splitlines()) == 4


def test_tensorboard_finds_its_event_files(fitted):
    _, _, _, folder = fitted
    written = {path.parent.name for path in (folder / "logs").rglob("events.out.tfevents.*")}
    assert written == {"train", "validation"}


def test_the_training_step_is_traced_once(fitted):
    learner, _, _, _ = fitted
    assert learner.traces == 1


def test_metrics_leave_padding_out(fitted):
    learner, validation, history, _ = fitted
    found = learner.evaluate(validation, verbose=0, return_dict=True)
    scores = np.split(learner.predict(validation, verbose=0), len(validation))
    errors, losses = [], []
    for score, episode in zip(scores, validation.dataset(batches=len(validation)), strict=True):
        lengths = episode.query.length.numpy()
        assert set(lengths) == {4}
        error = (score - episode.query.label.numpy())[:, :4]
        errors.append(np.abs(error).ravel())
        losses.append((error**2).mean())
    assert found["mean_absolute_error"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    assert learner.evaluate(validation, verbose=0) == pytest.approx([found["loss"], found["mean_absolute_error"]])


def test_a_saved_learner_keeps_its_metrics_optimizer_and_vocabulary(fitted, tmp_path):
    learner, validation, _, _ = fitted
    twin = MAML(learner.model, inner_learning_rate=0.1)
    twin.compile(keras.optimizers.Adam(0.01), "huber", [keras.metrics.MeanAbsoluteError()])
    twin.save(tmp_path / "learner.keras")
    loaded = keras.saving.load_model(tmp_path / "learner.keras")
    assert loaded.optimizer.get_config() == twin.optimizer.get_config()
    assert loaded.task_loss.get_config() == twin.task_loss.get_config()
    assert loaded.vocabulary.item_ids.tolist() == learner.vocabulary.item_ids.tolist()
    figures = [model.evaluate(validation, verbose=0, return_dict=True) for model in (twin, loaded)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
    assert set(figures[0]) == {"loss", "mean_absolute_error"}


# -- adapting and scoring ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maml(explicit):
    return MAML(TwoTower(explicit.vocabulary, 4, id_dropout=0.0), inner_learning_rate=0.1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_labels_that_are_no_numbers_are_refused_by_task(maml, explicit, first_batch, wrong):
    support = first_batch(explicit.episodes).support
    support.label[3, 2] = wrong
    with pytest.raises(ValueError, match="support labels must be finite. Received NaN or infinity in task 3."):
        maml.adapt(support)
    support.length[3] = 2  # Now it stands past the length.
    assert np.isfinite(maml.adapt(support).weights[0]).all()


def test_whole_number_and_double_labels_adapt_alike(maml, explicit, first_batch):
    support = first_batch(explicit.episodes).support
    expected = maml.adapt(support).weights
    for dtype in (np.int64, np.float64):
        for a, b in zip(maml.adapt(support._replace(label=support.label.astype(dtype))).weights, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_candidates_common_to_all_score_as_each_tasks_own(maml, explicit, first_batch):
    state = maml.adapt(first_batch(explicit.episodes).support)
    catalogue = explicit.vocabulary.catalogue
    own = {name: np.repeat(value[None], 6, axis=0) for name, value in catalogue.items()}
    common = maml.score(state, catalogue)
    assert common.shape == (6, explicit.vocabulary.n_items)
    np.testing.assert_allclose(common, maml.score(state, own), rtol=1e-5, atol=1e-5)


def test_queries_times_items_are_the_scores(maml, explicit, first_batch):
    state = maml.adapt(first_batch(explicit.episodes).support)
    items = maml.model.encode_item(explicit.vocabulary.catalogue)
    np.testing.assert_allclose(
        maml.query(state) @ tf.transpose(items), maml.score(state, explicit.vocabulary.catalogue), rtol=1e-4, atol=1e-5
    )


def test_query_needs_a_dot_product(explicit, first_batch):
    learner = MAML(Ranker(explicit.vocabulary, 3, hidden=(4,)))
    with pytest.raises(ValueError, match="`query` needs a model that scores by a dot product. Received: Ranker"):
        learner.query(learner.adapt(first_batch(explicit.episodes).support))


def test_calling_a_learner_scores_the_query_after_adapting(maml, explicit, first_batch):
    episode = tf.nest.map_structure(tf.constant, first_batch(explicit.episodes))
    expected = maml.score(maml.adapt(episode.support), episode.query.item)
    np.testing.assert_allclose(tf.function(maml, autograph=False)(episode), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["two_tower", "ranker", "own"])
def test_a_support_without_any_room_is_the_starting_point(explicit, own_model, first_batch, kind):
    vocabulary = explicit.vocabulary
    made = {"two_tower": TwoTower, "ranker": Ranker, "own": own_model}[kind](vocabulary)
    for engine in ("auto", "vectorized"):
        learner = MAML(made, vocabulary=vocabulary, engine=engine)
        support = first_batch(explicit.episodes).support
        empty = tf.nest.map_structure(lambda value: value[:, :0] if value.ndim > 1 else value, support)
        empty = Support(support.user, empty.item, empty.label, np.zeros(6, np.int32))
        for weight, start in zip(learner.adapt(empty).weights, learner.starting_weights(1), strict=True):
            np.testing.assert_array_equal(weight, np.broadcast_to(start, weight.shape))


def test_scoring_needs_candidates(maml, explicit, first_batch):
    state = maml.adapt(first_batch(explicit.episodes).support)
    with pytest.raises(ValueError, match=r"`item` must be given \(or `user`, for tasks about an item\)"):
        maml.score(state)


def test_only_episodes_are_trained_on(explicit):
    learner = MAML(TwoTower(explicit.vocabulary, 3))
    learner.compile("sgd")
    data = tf.data.Dataset.from_tensor_slices({"item_id": [1, 2]}).batch(2)
    with pytest.raises(TypeError, match="a meta-learner trains on episodes, see `tfmetarec.tasks`. Received: dict"):
        learner.fit(data, verbose=0)


def test_metrics_come_in_a_list(explicit, first_batch):
    learner = MAML(TwoTower(explicit.vocabulary, 3))
    with pytest.raises(ValueError, match="`metrics` must be a list of Keras metrics. Received: metrics='mae'"):
        learner.compile("sgd", metrics="mae")
    learner.compile("sgd", metrics=["mae"], weighted_metrics=["mse"])
    logs = learner.test_step(tf.nest.map_structure(tf.constant, first_batch(explicit.episodes)))
    assert set(logs) == {"loss", "mae", "mse"}


# -- implicit feedback -----------------------------------------------------------------------------------------------


def test_the_contrast_is_the_whole_catalogue_where_that_is_small(implicit):
    learner = MAML(TwoTower(implicit.vocabulary, 3))
    assert learner.contrast_items.tolist() == list(range(1, implicit.vocabulary.n_items))
    assert not learner.contrast_log_expected.any()


def test_a_smaller_contrast_is_drawn_by_popularity_and_kept(implicit):
    popularity = implicit.vocabulary.popularity**0.75
    one, same, other = (MAML(TwoTower(implicit.vocabulary, 3), contrast=9, seed=seed) for seed in (1, 1, 2))
    assert len(one.contrast_items) == 9
    assert one.contrast_items.min() >= 1
    assert one.contrast_items.tolist() == same.contrast_items.tolist() != other.contrast_items.tolist()
    expected = np.log(9 * popularity[one.contrast_items] / popularity.sum())
    np.testing.assert_allclose(one.contrast_log_expected, expected, rtol=1e-6)


def test_items_of_the_support_are_not_contrasted_with_themselves(implicit):
    learner = MAML(TwoTower(implicit.vocabulary, 3))
    rows, real = tf.constant([[3, 5, 7]]), tf.constant([[True, True, False]])
    weight = learner.contrast_weight(rows, real)[0].numpy()
    assert set(learner.contrast_items[weight == 0]) == {3, 5}


def test_implicit_feedback_needs_a_vocabulary_and_tasks_about_users(implicit, first_batch):
    support = first_batch(implicit.episodes).support
    with pytest.raises(ValueError, match="`vocabulary` is needed to adapt from implicit feedback"):
        MAML(TwoTower(implicit.vocabulary.specs, 3)).adapt(support)
    with pytest.raises(ValueError, match="tasks about items need explicit feedback"):
        item_episodes(implicit.data, implicit.vocabulary, support=(0, 2), query=1, tasks_per_batch=3)


def test_probabilities_train_on_negatives_with_label_zero(implicit):
    learner = MAML(TwoTower(implicit.vocabulary, 4, activation="sigmoid"), inner_learning_rate=0.1)
    learner.compile(keras.optimizers.Adam(0.02), loss="binary_crossentropy")
    history = learner.fit(implicit.episodes, epochs=12, verbose=0).history["loss"]
    assert np.mean(history[-3:]) < np.mean(history[:3])
    scores = learner.predict(implicit.episodes, verbose=0)
    assert ((scores > 0) & (scores < 1)).all()


def test_compiling_again_changes_how_it_adapts(implicit, first_batch):
    support = first_batch(implicit.episodes).support
    learner = MAML(TwoTower(implicit.vocabulary, 4), inner_learning_rate=0.5)
    found = []
    for temperature in (1.0, 0.1):
        learner.compile("sgd", SampledSoftmax(temperature))
        found.append(learner.adapt(support).weights[0].numpy())
    assert not np.allclose(found[0][1:5], found[1][1:5])


# -- tasks about items and domains ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_domain():
    rng = np.random.default_rng(0)
    pairs = pl.DataFrame(list(itertools.product(range(12), range(10))), schema=["user_id", "item_id"], orient="row")
    domain = rng.choice(["book", "film", "game"], 120)
    pairs = pairs.with_columns(label=pl.Series(np.where(domain == "book", 5.0, 1.0)), domain=pl.Series(domain))
    data = Interactions.from_frames(pairs, feedback="explicit")
    return data, Vocabulary.fit(data)


@pytest.mark.parametrize(("model", "algorithm"), [(TwoTower, MAML), (Ranker, FineTuning)])
def test_tasks_about_items_train(explicit, model, algorithm):
    options = {"support": (0, 3), "query": 2, "tasks_per_batch": 8}
    episodes = item_episodes(explicit.data, explicit.vocabulary, **options)
    learner = algorithm(model(explicit.vocabulary, 4), inner_learning_rate=0.1)
    learner.compile(keras.optimizers.Adam(0.03))
    history = learner.fit(episodes, epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    episode = next(iter(episodes.dataset()))
    users = {name: np.repeat(value[:1], 8, axis=0) for name, value in episode.query.user.items()}
    state = learner.adapt(episode.support)
    assert state.user is None
    assert learner.score(state, user=users).shape == (8, 2)


@pytest.mark.parametrize("model", [TwoTower, pytest.param(Ranker, marks=pytest.mark.slow)])
def test_tasks_about_domains_train_and_tell_the_domains_apart(by_domain, model):
    data, vocabulary = by_domain
    episodes = domain_episodes(data, vocabulary, support=(4, 8), query=8, tasks_per_batch=3, steps_per_epoch=4)
    # Small enough a step for the wider of the two models not to overshoot.
    learner = MAML(model(vocabulary, 4), inner_steps=2, inner_learning_rate=0.05)
    learner.compile(keras.optimizers.Adam(0.02))
    learner.fit(episodes, epochs=4, verbose=0)
    episode = next(iter(episodes.dataset()))
    scores = learner.predict(episodes.dataset(0, 1), verbose=0)
    labels = episode.query.label.numpy()
    assert {*labels[:, 0]} == {1.0, 5.0}
    assert scores[labels == 5].mean() > scores[labels == 1].mean() + 0.5
