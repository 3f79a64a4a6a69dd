"""The trainer: what a step does, in numbers; and what a Keras user may rely on."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.models import TwoTower
from tfmetarec.models.sequence import Sequence
from tfmetarec.tasks import item_episodes, user_episodes
from tfmetarec.transfer.candidates import candidates_of
from tfmetarec.transfer.distillation import Distiller
from tfmetarec.transfer.distillation_losses import (
    BinarySoftLabels,
    FeatureHints,
    RankingDistillation,
    RelaxedRanking,
    SoftmaxSoftLabels,
    SquaredSoftLabels,
)
from tfmetarec.transfer.soft_labels import SoftLabelTeacher, write_soft_labels
from tfmetarec.transfer.teachers import LearnerTeacher, ModelTeacher, map_items

X = np.asarray([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, -1.0]], np.float32)
Y = np.asarray([[1.0], [0.0], [1.0], [1.0]], np.float32)


def linear(kernel):
    """A model of one Dense layer without bias."""
    kernel = np.asarray(kernel, np.float32)
    model = keras.Sequential([keras.Input((len(kernel),)), keras.layers.Dense(kernel.shape[1], use_bias=False)])
    model.set_weights([kernel])
    return model


def batches(*parts, size=4):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(size)


def close(history, expected, rel=1e-5):
    """Whether two histories have the same figures."""
    assert history.keys() == expected.keys()
    return all(history[name] == pytest.approx(expected[name], rel=rel) for name in history)


class Counting(Distiller):
    """Counts how often Keras traces the training step."""

    traces = 0

    def train_step(self, data):
        self.traces += 1
        return super().train_step(data)


# -- plain models: what a step does --------------------------------------------------------------------------------


def test_the_loss_is_the_mixture_and_the_step_follows_it():
    student, teacher = linear([[0.5], [0.0]]), linear([[1.0], [1.0]])
    distiller = Distiller(student, teacher, soft_loss=SquaredSoftLabels(), alpha=0.25)
    distiller.compile(keras.optimizers.SGD(1.0), "mean_squared_error")
    history = distiller.fit(batches(X, Y), verbose=0).history
    start, label, told = X @ [0.5, 0.0], Y[:, 0], X @ [1.0, 1.0]
    hard, soft = np.mean((start - label) ** 2), np.mean((start - told) ** 2)
    assert close(history, {"loss": [0.75 * hard + 0.25 * soft], "hard_loss": [hard], "soft_loss": [soft]})
    expected = np.asarray([0.5, 0.0]) - 2 / 4 * X.T @ (0.75 * (start - label) + 0.25 * (start - told))
    np.testing.assert_allclose(student.get_weights()[0][:, 0], expected, rtol=1e-5)


def test_without_a_soft_share_it_is_plain_training():
    weights = []
    for distilled in (True, False):
        student = linear([[0.5], [0.0]])
        model = Distiller(student, linear([[1.0], [1.0]]), alpha=0.0) if distilled else student
        model.compile(keras.optimizers.Adam(0.1), keras.losses.BinaryCrossentropy(from_logits=True))
        model.fit(batches(X, Y, np.asarray([1.0, 2.0, 0.0, 1.0]), size=3), epochs=3, verbose=0, shuffle=False)
        weights.append(student.get_weights()[0])
    np.testing.assert_allclose(*weights, rtol=1e-5)


def test_without_a_hard_share_labels_are_not_needed():
    student = linear([[0.0], [0.0]])
    distiller = Distiller(student, linear([[2.0], [-1.0]]), alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.5))
    history = distiller.fit(batches(X), epochs=60, verbose=0, validation_data=batches(X)).history
    assert set(history) == {"loss", "soft_loss", "val_loss"}
    assert history["val_loss"][-1] < 1e-3 < history["soft_loss"][0]
    with pytest.raises(ValueError, match="`loss`, the hard loss, must be given unless alpha is 1. Received: alpha=0.5"):
        Distiller(student, linear([[2.0], [-1.0]])).compile("sgd")


def test_sample_weight_is_honoured_by_both_losses():
    weight = np.asarray([2.0, 0.0, 1.0, 0.5], np.float32)
    distiller = Distiller(linear([[0.5], [0.0]]), linear([[1.0], [1.0]]), soft_loss=SquaredSoftLabels())
    distiller.compile(keras.optimizers.SGD(0.0), "mean_squared_error", weighted_metrics=["mse"])
    history = distiller.fit(X, Y, sample_weight=weight, verbose=0, batch_size=4, shuffle=False).history
    hard, soft = (X @ [0.5, 0.0] - Y[:, 0]) ** 2, (X @ [0.5, 0.0] - X @ [1.0, 1.0]) ** 2
    assert history["hard_loss"] == pytest.approx([np.sum(weight * hard) / 4])
    assert history["soft_loss"] == pytest.approx([np.sum(weight * soft) / 4])
    assert history["mse"] == pytest.approx([np.sum(weight * hard) / weight.sum()])
    within = Distiller(linear(np.eye(2)), linear(np.eye(2)), alpha=1.0)
    within.compile("sgd")
    with pytest.raises(ValueError, match="`sample_weight` must hold one number for each list"):
        within.fit(batches(X, Y, np.ones((4, 2), np.float32)), verbose=0)


def test_rows_of_one_score_are_binary_and_lists_are_softmaxes_by_default():
    many = linear(np.eye(2, 3))
    for student, loss in ((linear([[0.5], [0.0]]), BinarySoftLabels(2.0)), (many, SoftmaxSoftLabels(2.0))):
        teacher = linear(np.arange(2 * student.output_shape[1]).reshape(2, -1))
        distiller = Distiller(student, teacher, alpha=1.0)
        distiller.compile(keras.optimizers.SGD(0.0))
        history = distiller.fit(batches(X), verbose=0).history
        assert history["soft_loss"] == pytest.approx([float(loss(student(X), teacher(X)))], rel=1e-5)


def test_probabilities_of_student_and_teacher_are_undone():
    inputs = keras.Input((2,))
    student = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", use_bias=False)(inputs))
    student.set_weights([np.asarray([[0.5], [0.25]], np.float32)])
    teacher = ModelTeacher(lambda x: tf.sigmoid(tf.reduce_sum(x, 1)), activation="sigmoid")
    distiller = Distiller(student, teacher, soft_loss=SquaredSoftLabels(), alpha=1.0, student_activation="sigmoid")
    distiller.compile(keras.optimizers.SGD(0.0))
    expected = np.mean((X @ [0.5, 0.25] - X.sum(1)) ** 2)
    assert distiller.fit(batches(X), verbose=0).history["soft_loss"] == pytest.approx([expected], rel=1e-3)


def test_penalties_of_the_student_are_nobodys_share():
    student = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(3.0))]
    )
    student.set_weights([np.asarray([[1.0], [2.0]], np.float32), np.zeros(1, np.float32)])
    distiller = Distiller(student, linear([[1.0], [1.0]]), soft_loss=SquaredSoftLabels(), alpha=0.5)
    distiller.compile(keras.optimizers.SGD(0.0), "mean_squared_error")
    history = distiller.fit(batches(X, Y), verbose=0).history
    assert history["loss"][0] == pytest.approx(0.5 * (history["hard_loss"][0] + history["soft_loss"][0]) + 15.0)


def test_students_and_teachers_of_other_catalogues_meet_in_the_map():
    student, teacher = linear(np.zeros((2, 3))), linear([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])
    refused = Distiller(student, teacher, alpha=1.0)
    refused.compile("sgd")
    with pytest.raises(ValueError, match=r"Received: student \(None, 3\), teacher \(None, 4\)"):
        refused.fit(batches(X), verbose=0)
    distiller = Distiller(student, ModelTeacher(teacher, items=[2, -1, 0]), soft_loss=SquaredSoftLabels(), alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    told = teacher(X).numpy()[:, [2, 0]]  # Of the student's second column the teacher knows nothing.
    assert distiller.fit(batches(X), verbose=0).history["soft_loss"] == pytest.approx([np.mean(told**2)], rel=1e-5)


# -- two tasks ---------------------------------------------------------------------------------------------------------


def test_hard_labels_of_the_source_and_soft_labels_of_the_target():
    student, teacher = linear([[0.5], [0.0]]), linear([[1.0], [1.0]])
    distiller = Distiller(student, teacher, soft_loss=SquaredSoftLabels(), alpha=0.25)
    distiller.compile(keras.optimizers.SGD(1.0), "mean_squared_error")
    target = X[:3] + 1
    nonsense = np.full((3, 1), np.nan, np.float32)  # What the target's labels are does not matter.
    weight = np.asarray([1.0, 0.0, 2.0], np.float32)
    history = distiller.fit(batches(X, Y), soft_data=batches(target, nonsense, weight), verbose=0).history
    wrong, off = X @ [0.5, 0.0] - Y[:, 0], target @ [0.5, 0.0] - target @ [1.0, 1.0]
    assert history["hard_loss"] == pytest.approx([np.mean(wrong**2)])
    assert history["soft_loss"] == pytest.approx([np.sum(weight * off**2) / 3])
    assert history["loss"] == pytest.approx([0.75 * history["hard_loss"][0] + 0.25 * history["soft_loss"][0]])
    moved = np.asarray([0.5, 0.0]) - 0.75 * 2 / 4 * X.T @ wrong - 0.25 * 2 / 3 * target.T @ (weight * off)
    np.testing.assert_allclose(student.get_weights()[0][:, 0], moved, rtol=1e-4)


def test_the_target_goes_on_where_the_last_epoch_stopped():
    asked = []

    def teacher(x):
        tf.numpy_function(lambda value: asked.append(value.ravel().tolist()), [x], [])
        return tf.reduce_sum(x, 1)

    distiller = Distiller(linear([[0.0]]), teacher)
    distiller.compile(keras.optimizers.SGD(0.0), "mse")
    source, target = np.zeros((2, 1), np.float32), np.arange(1.0, 4.0, dtype=np.float32)[:, None]
    two = {"soft_data": batches(target, size=1), "epochs": 2, "verbose": 0}
    distiller.fit(batches(source, source, size=1), **two)
    assert asked == [[1.0], [2.0], [3.0], [1.0]]


def test_two_data_sets_must_be_data_sets_of_known_length():
    distiller = Distiller(linear([[0.0], [0.0]]), linear([[0.0], [0.0]]))
    distiller.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`x` must be Episodes or a tf.data.Dataset .* Received: ndarray"):
        distiller.fit(X, Y, soft_data=batches(X), verbose=0)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        distiller.fit(batches(X, Y).repeat(), soft_data=batches(X), verbose=0)


# -- the teacher stays, the step is traced once -----------------------------------------------------------------------


def test_the_teacher_never_moves_and_is_in_no_optimizer(values_of):
    inputs = keras.Input((2,))
    noisy = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs)))
    teacher = keras.Model(inputs, keras.layers.Dense(1)(noisy))
    before = values_of(teacher)
    distiller = Counting(linear([[0.5], [0.0]]), teacher)
    distiller.compile(keras.optimizers.Adam(0.1), "mse")
    distiller.fit(batches(X, Y), epochs=3, verbose=0)
    for a, b in zip(before, values_of(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    theirs = {id(variable) for variable in teacher.variables}
    assert not theirs & {id(variable) for variable in distiller.variables}
    assert len(distiller.trainable_variables) == 1
    assert not [variable for variable in distiller.optimizer.variables if variable.shape == (2, 3)]
    assert distiller.traces == 1


def test_a_teacher_that_shares_variables_with_the_student_is_refused():
    student = linear([[0.5], [0.0]])
    with pytest.raises(ValueError, match="a teacher must not change while it teaches, and this one shares variables"):
        Distiller(student, keras.Sequential([student]))


def test_a_setting_changed_between_two_fits_counts():
    distiller = Distiller(linear([[0.5], [0.0]]), linear([[1.0], [1.0]]), soft_loss=SquaredSoftLabels())
    distiller.compile(keras.optimizers.SGD(0.0), "mse")
    losses = []
    for alpha in (0.0, 1.0):
        distiller.alpha = alpha
        losses.append(distiller.fit(batches(X, Y), verbose=0).history)
    assert losses[0]["loss"] == losses[0]["hard_loss"]
    assert losses[1]["loss"] == losses[1]["soft_loss"]


def test_a_student_without_shapes_is_built_by_the_first_batch():
    distiller = Counting(keras.Sequential([keras.layers.Dense(1)]), linear([[1.0], [1.0]]))
    distiller.compile("adam", "mse")
    distiller.fit(X, Y, epochs=2, verbose=0)
    assert distiller.traces == 1
    assert len(distiller.trainable_variables) == 2


def test_evaluate_and_predict_are_the_students():
    student = linear([[0.5], [0.0]])
    distiller = Distiller(student, linear([[1.0], [1.0]]))
    for model in (distiller, student):
        model.compile("sgd", "mse", metrics=["mae"])
    assert distiller.evaluate(X, Y, verbose=0) == pytest.approx(student.evaluate(X, Y, verbose=0))
    found = distiller.evaluate(batches(X, Y, size=3), verbose=0, return_dict=True)
    assert found == pytest.approx(student.evaluate(batches(X, Y, size=3), verbose=0, return_dict=True))
    np.testing.assert_array_equal(distiller.predict(X, verbose=0), student.predict(X, verbose=0))
    np.testing.assert_array_equal(distiller(X), student(X))


def test_callbacks_see_the_losses_and_the_metrics(tmp_path):
    distiller = Distiller(linear([[0.5], [0.0]]), linear([[1.0], [1.0]]))
    distiller.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"])
    callbacks = [keras.callbacks.CSVLogger(tmp_path / "log.csv"), keras.callbacks.EarlyStopping("val_loss", patience=9)]
    history = distiller.fit(X, Y, validation_data=(X, Y), epochs=4, verbose=0, callbacks=callbacks).history
    names = {"loss", "hard_loss", "soft_loss", "mae"}
    assert set(history) == names | {"val_loss", "val_mae"}
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    assert history["val_loss"][-1] == pytest.approx(distiller.evaluate(X, Y, verbose=0)[0])


# -- hints -------------------------------------------------------------------------------------------------------------


def deep(width, seed):
    inputs = keras.Input((2,))
    kernel = keras.initializers.GlorotUniform(seed)
    hidden = keras.layers.Dense(width, "tanh", kernel_initializer=kernel, name="hidden")(inputs)
    dropped = keras.layers.Dropout(0.5, seed=seed)(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=kernel)(dropped))


@pytest.mark.parametrize("by_name", [True, False])
def test_hints_are_added_with_their_weight_and_train_a_projection(by_name):
    student, teacher = deep(2, 0), deep(5, 1)

    def hidden(model, x):
        return model.get_layer("hidden")(x)

    hints = FeatureHints(5, *(["hidden"] * 2 if by_name else [hidden] * 2), weight=10.0)
    distiller = Counting(student, teacher, hints=hints, alpha=0.5)
    distiller.compile(keras.optimizers.Adam(0.05), "mse")
    history = distiller.fit(batches(X, Y), epochs=60, verbose=0).history
    assert set(history) == {"loss", "hard_loss", "soft_loss", "hint_loss"}
    parts = [history[name][0] for name in ("hard_loss", "soft_loss", "hint_loss")]
    assert history["loss"][0] == pytest.approx(np.dot([0.5, 0.5, 10.0], parts), rel=1e-5)
    assert history["hint_loss"][-1] < 0.2 * history["hint_loss"][0]
    projected = hints.projection(student.get_layer("hidden")(X))
    remaining = np.mean((projected - teacher.get_layer("hidden")(X)) ** 2)
    assert remaining < history["hint_loss"][0] / 2
    assert distiller.traces == 1
    assert len(distiller.trainable_variables) == 4 + 2
    assert len(student.trainable_variables) == 4


def test_hints_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="`hints` must be a FeatureHints. Received: str"):
        Distiller(linear([[1.0]]), linear([[1.0]]), hints="hidden")
    named = FeatureHints(2, "hidden", "hidden")
    subclassed = Distiller(Wrapped(), linear([[1.0], [1.0]]), hints=named)
    subclassed.compile("sgd", "mse")
    with pytest.raises(ValueError, match="can be the name of a layer where the model is functional; give a function"):
        subclassed.fit(batches(X, Y), verbose=0)

    with pytest.raises(
        ValueError, match="must be functions of a model and an episode. Received: 'hidden' and 'hidden'"
    ):
        Distiller(tmr.meta.Ridge(small(tmr.data.Vocabulary.fit(tmr.data.load("synthetic")))), Shown(), hints=named)


class Wrapped(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(1)

    def call(self, x):
        return self.hidden(x)


# -- saving ------------------------------------------------------------------------------------------------------------


def test_a_distiller_comes_back_with_student_teacher_and_optimizer(tmp_path):
    teacher = ModelTeacher(linear([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), items=[2, -1, 0])
    student = linear(np.zeros((2, 3)))
    hints = FeatureHints(2, inside, inside, weight=0.5)
    distiller = Distiller(student, teacher, soft_loss=SoftmaxSoftLabels(3.0), alpha=0.3, hints=hints)
    distiller.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    labels = np.tile(Y, 3)
    distiller.fit(X, labels, epochs=2, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert json.dumps(loaded.get_config()["soft_loss"]) == json.dumps(distiller.get_config()["soft_loss"])
    assert (loaded.alpha, loaded.hints.weight) == (0.3, 0.5)
    np.testing.assert_array_equal(loaded(X), distiller(X))
    np.testing.assert_array_equal(loaded.teacher.rows(X).score, teacher.rows(X).score)
    histories = [model.fit(X, labels, verbose=0, shuffle=False).history for model in (distiller, loaded)]
    assert close(*histories)
    np.testing.assert_allclose(loaded.student.get_weights()[0], student.get_weights()[0], rtol=1e-6)


@keras.saving.register_keras_serializable(package="test_distillation")
def inside(model, x):
    return x


def test_a_teacher_that_cannot_be_saved_says_what_can(tmp_path):
    distiller = Distiller(linear([[1.0], [1.0]]), lambda x: x[:, 0])
    with pytest.raises(ValueError, match="a teacher of type function cannot be saved .* save `distiller.student`"):
        distiller.save(tmp_path / "distiller.keras")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": 1.5}, "`alpha` must be between 0 and 1. Received: alpha=1.5"),
        ({"alpha": np.nan}, "`alpha` must be between 0 and 1"),
        ({"soft_loss": "kl"}, "`soft_loss` must be a DistillationLoss. Received: str"),
        (
            {"candidates": 0},
            "`candidates` must be 'episode', 'catalogue' or a whole number of at least 1. Received: cand",
        ),
        ({"candidates": "all"}, "`candidates` must be 'episode', 'catalogue' or"),
        ({"candidates": True}, "`candidates` must be 'episode', 'catalogue' or"),
        ({"candidates": 5}, "`candidates` can be chosen for a meta-learner; a plain model scores what is in its batch"),
        ({"student_activation": "relu"}, "`student_activation` must be one of linear, sigmoid, softmax"),
        ({"student": "mlp"}, "`student` must be a Keras 3 model. Received: str"),
    ],
)
def test_options_out_of_range_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Distiller(**{"student": linear([[1.0]]), "teacher": linear([[1.0]]), **options})


# -- meta-learners: candidates -----------------------------------------------------------------------------------------


class Shown:
    """A recommender in NumPy: an item scores its row, and 100 more for each item of the support."""

    def __init__(self):
        self.seen = []

    def adapt(self, support):
        self.seen.append(support)
        return np.asarray(support.length)

    def score(self, state, item):
        rows = np.asarray(item["item_id"], np.float32)
        return np.broadcast_to(rows, (len(state), rows.shape[-1])) + 100.0 * np.asarray(state)[:, None]


@pytest.fixture(scope="module")
def shared():
    """A vocabulary of 40 items, and episodes of 6 tasks with 12 negatives."""
    data = tmr.data.load("synthetic", n_users=20, n_items=40, interactions_per_user=8, noise=0.2, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(data, user_ids=True)
    options = {"query": 3, "tasks_per_batch": 6, "steps_per_epoch": 2, "negatives": 12, "seed": 0}
    return data, vocabulary, user_episodes(data, vocabulary, support=(0, 4), **options)


def small(vocabulary, width=4, seed=0):
    return TwoTower(vocabulary, width, dropout=0.0, id_dropout=0.0, seed=seed)


def listed(shared, first_batch, choice, teacher=None):
    episode = first_batch(shared[2])
    candidates, said = candidates_of(episode, teacher or LearnerTeacher(Shown()), choice, shared[1])
    rows = [np.broadcast_to(group["item_id"], (6, group["item_id"].shape[-1])) for group in candidates.groups]
    return episode, np.concatenate(rows, 1), np.asarray(said.present), np.asarray(said.score)


def test_candidates_of_an_episode_are_its_query_and_negatives_each_once(shared, first_batch):
    episode, rows, present, score = listed(shared, first_batch, "episode")
    assert rows.shape == (6, 3 + 12)
    negatives = episode.query_negatives
    assert len(set(negatives.item["item_id"])) < 12  # Drawn with replacement.
    for task in range(6):
        query = set(episode.query.item["item_id"][task, : episode.query.length[task]])
        allowed = set(negatives.item["item_id"][negatives.weight[task] > 0])
        counted = rows[task][present[task] > 0].tolist()
        assert set(counted) == query | allowed
        assert len(counted) == len(set(counted))
        assert score[task][present[task] > 0].tolist() == [
            row + 100.0 * episode.support.length[task] for row in counted
        ]


def test_candidates_of_the_catalogue_are_all_but_what_the_support_shows(shared, first_batch):
    episode, rows, present, _ = listed(shared, first_batch, "catalogue")
    for task in range(6):
        shown = set(episode.support.item["item_id"][task, : episode.support.length[task]])
        assert set(rows[task][present[task] > 0]) == set(range(1, shared[1].n_items)) - shown


def test_the_teachers_best_come_first_and_the_negatives_after(shared, first_batch):
    episode, rows, present, score = listed(shared, first_batch, 5)
    last = shared[1].n_items - 1
    for task in range(6):
        shown = set(episode.support.item["item_id"][task, : episode.support.length[task]])
        best = [row for row in range(last, 0, -1) if row not in shown][:5]
        assert rows[task, :5].tolist() == best
        assert present[task, :5].all()
        counted = rows[task, 5:][present[task, 5:] > 0].tolist()
        negatives = episode.query_negatives
        assert set(counted) == set(negatives.item["item_id"][negatives.weight[task] > 0]) - set(best)
        assert len(counted) == len(set(counted))
    np.testing.assert_array_equal(score, rows + 100.0 * episode.support.length[:, None])


def test_items_that_the_teacher_does_not_know_are_no_candidates(shared, first_batch):
    items = np.arange(shared[1].n_items) - 1
    items[[3, 40]] = -1
    teacher = LearnerTeacher(Shown(), items=items)
    for choice in ("episode", "catalogue", 5):
        _, rows, present, _ = listed(shared, first_batch, choice, teacher)
        counted = set(rows[present > 0])
        assert not counted & {0, 1, 3, 40} - {1}
        assert choice != "catalogue" or counted == set(range(1, 40)) - {3}


# -- meta-learners: the step -------------------------------------------------------------------------------------------


def test_the_soft_loss_compares_with_the_teacher_after_the_same_support(shared):
    _, vocabulary, episodes = shared
    learner, teacher = tmr.meta.Ridge(small(vocabulary)), Shown()
    distiller = Counting(learner, teacher, soft_loss=SquaredSoftLabels(), alpha=0.25)
    distiller.compile(keras.optimizers.SGD(0.0), metrics=[keras.metrics.MeanAbsoluteError()])
    history = distiller.fit(episodes, epochs=2, verbose=0, validation_data=episodes).history
    assert distiller.traces == 1
    names = {"loss", "hard_loss", "soft_loss", "mean_absolute_error"}
    assert set(history) == names | {"val_loss", "val_mean_absolute_error"}
    softs, hards, errors = [], [], []
    for episode in episodes.dataset(batches=2):
        seen = teacher.seen.pop(0)
        np.testing.assert_array_equal(seen.item["item_id"], episode.support.item["item_id"])
        np.testing.assert_array_equal(seen.length, episode.support.length)
        candidates, said = candidates_of(episode, LearnerTeacher(Shown()), "episode", None)
        # As in training: contrasted with the episode's negatives.
        state = learner.adapt(episode.support, episode.support_negatives)
        scores = np.concatenate([learner.score(state, group) for group in candidates.groups], 1)
        softs.append(float(SquaredSoftLabels()(scores, said.score, said.present)))
        outer = learner.outer_loss(*learner.encode(episode, training=False))
        hards.append(float(outer.loss))
        errors.append(np.abs(outer.scores - 1)[np.arange(3) < episode.query.length[:, None]])
    assert history["soft_loss"][0] == pytest.approx(np.mean(softs), rel=1e-4)
    assert history["hard_loss"][0] == pytest.approx(np.mean(hards), rel=1e-4)
    assert history["loss"][0] == pytest.approx(0.75 * np.mean(hards) + 0.25 * np.mean(softs), rel=1e-4)
    assert history["mean_absolute_error"][0] == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    evaluated = learner.evaluate(episodes, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(evaluated["loss"], rel=1e-5)
    assert history["val_mean_absolute_error"][-1] == pytest.approx(evaluated["mean_absolute_error"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["ANIL", "BOIL", "FineTuning", "FirstOrderMAML", "IMAML", "MAML", "MAMLPlusPlus", "MetaSGD", "NeuralProcess",
     "PrototypicalNetwork", "Reptile", "Ridge", "SetEncoder"],
)  # fmt: skip
@pytest.mark.parametrize("candidates", ["episode", 10])
def test_every_learner_comes_closer_to_its_teacher(shared, name, candidates):
    _, vocabulary, episodes = shared
    teacher = tmr.meta.Ridge(by_rank(small(vocabulary, 8, seed=5)))
    model = TwoTower(vocabulary, 4, user_hidden=(6,), dropout=0.0, id_dropout=0.0)
    distiller = Counting(getattr(tmr.meta, name)(model), teacher, alpha=1.0, candidates=candidates)
    distiller.compile(tmr.optimizers.RowSparseAdam(0.02))
    history = distiller.fit(episodes, epochs=12, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.mean(history["soft_loss"][-3:]) < 0.8 * np.mean(history["soft_loss"][:3])
    assert distiller.traces == 1


def by_rank(model):
    """The model with random variables, large enough to prefer some items."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(0.7 * rng.normal(size=variable.shape))
    return model


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    # Of explicit feedback: with implicit a teacher adapts as it is served, contrasted with other items than in training.
    data = tmr.data.load("synthetic", n_users=20, n_items=40, interactions_per_user=8, feedback="explicit", seed=0)
    vocabulary = tmr.data.Vocabulary.fit(data)
    episodes = user_episodes(data, vocabulary, support=(0, 4), query=3, tasks_per_batch=6, steps_per_epoch=2)
    student, teacher = (tmr.meta.Ridge(by_rank(small(vocabulary))) for _ in range(2))
    distiller = Distiller(student, teacher, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    history = distiller.fit(episodes, verbose=0).history
    assert history["soft_loss"] == pytest.approx([0.0], abs=1e-8)
    assert history["hard_loss"][0] > 0.1


@pytest.mark.parametrize(
    "loss",
    [
        RelaxedRanking(3),
        *(pytest.param(loss, marks=pytest.mark.slow) for loss in (SoftmaxSoftLabels(), RankingDistillation(3))),
    ],
)
def test_users_without_support_are_taught_the_starting_point(shared, loss):
    data, vocabulary, _ = shared
    options = {"support": 0, "query": 3, "tasks_per_batch": 6, "negatives": 12, "steps_per_epoch": 2}
    distiller = Distiller(tmr.meta.Ridge(small(vocabulary)), Shown(), soft_loss=loss, candidates=4)
    distiller.compile(tmr.optimizers.RowSparseAdam(0.02))
    history = distiller.fit(user_episodes(data, vocabulary, **options), epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["soft_loss"][-1] < history["soft_loss"][0]


def test_two_tasks_of_episodes_are_interleaved(shared):
    data, vocabulary, source = shared
    target = user_episodes(data, vocabulary, support=(0, 2), query=2, tasks_per_batch=4, negatives=6, seed=7)
    learner, teacher = tmr.meta.Ridge(small(vocabulary)), Shown()
    distiller = Counting(learner, teacher, soft_loss=SquaredSoftLabels(), alpha=0.25)
    distiller.compile(keras.optimizers.SGD(0.0))
    history = distiller.fit(source, soft_data=target, epochs=2, verbose=0).history
    assert distiller.traces == 1
    for seen, episode in zip(teacher.seen, target.dataset(batches=4), strict=True):
        np.testing.assert_array_equal(seen.item["item_id"], episode.support.item["item_id"])
    hards = [learner.outer_loss(*learner.encode(episode, training=False)).loss for episode in source.dataset(batches=2)]
    assert history["hard_loss"][0] == pytest.approx(np.mean(hards), rel=1e-4)
    softs = []
    for episode in target.dataset(batches=2):
        candidates, said = candidates_of(episode, LearnerTeacher(Shown()), "episode", None)
        _, scores = learner.candidate_scores(episode, candidates.groups, with_loss=False)
        softs.append(SquaredSoftLabels()(scores, said.score, said.present))
    assert history["soft_loss"][0] == pytest.approx(np.mean(softs), rel=1e-4)
    assert history["loss"][0] == pytest.approx(0.75 * np.mean(hards) + 0.25 * np.mean(softs), rel=1e-4)


# -- meta-learners: what fit, saving and export promise ----------------------------------------------------------------


def distilling(shared, seed=0):
    model = TwoTower(shared[1], 4, dropout=0.3, id_dropout=0.3, seed=seed)
    distiller = Distiller(tmr.meta.Ridge(model), Shown(), soft_loss=RelaxedRanking(3), alpha=0.5)
    distiller.compile(keras.optimizers.Adam(0.01))
    return distiller


@pytest.mark.parametrize("validated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_was_interrupted_ends_as_an_unbroken_one(shared, tmp_path, values_of, validated):
    data, _, episodes = shared
    ends, epochs = {}, 3 if validated else 2
    for name, stops in (("unbroken", [epochs]), ("broken", [epochs - 1, epochs])):
        for last in stops:
            distiller = distilling(shared)
            checkpoint = tmr.meta.Checkpoint(tmp_path / name, monitor="loss")
            callbacks = [checkpoint]
            if validated:
                checkpoint.monitor, checkpoint.mode = "val_ndcg", "max"
                callbacks.insert(0, tmr.evaluation.ColdStartValidation(data, shots=(0, 2), query=3, top_k=5))
            distiller.fit(episodes, epochs=last, verbose=0, callbacks=callbacks)
        ends[name] = values_of(distiller), [figures[checkpoint.monitor] for figures in checkpoint.history]
    assert len(ends["broken"][1]) == epochs
    assert ends["unbroken"][1] == ends["broken"][1]
    for a, b in zip(ends["unbroken"][0], ends["broken"][0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_distiller_of_learners_comes_back_and_its_student_is_an_ordinary_learner(shared, tmp_path, first_batch):
    _, vocabulary, episodes = shared
    student, teacher = tmr.meta.Ridge(small(vocabulary)), tmr.meta.Ridge(by_rank(small(vocabulary, 6)))
    distiller = Distiller(student, teacher, soft_loss=SoftmaxSoftLabels(3.0), alpha=0.6, candidates=7)
    distiller.compile(tmr.optimizers.RowSparseAdam(0.02), metrics=["mae"])
    distiller.fit(episodes, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert isinstance(loaded.student, tmr.meta.Ridge)
    assert loaded.candidates == 7
    assert loaded.student.vocabulary.item_ids.tolist() == vocabulary.item_ids.tolist()
    histories = [model.fit(episodes, verbose=0).history for model in (distiller, loaded)]
    assert set(histories[0]) == {"loss", "hard_loss", "soft_loss", "mae"}
    assert close(*histories)
    support = first_batch(episodes).support
    scores = distiller.student.score(distiller.student.adapt(support), vocabulary.catalogue)
    np.testing.assert_array_equal(scores, distiller.score(distiller.adapt(support), vocabulary.catalogue))
    distiller.student.save(tmp_path / "student.keras")
    alone = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(alone.score(alone.adapt(support), vocabulary.catalogue), scores, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_distilled_student_exports_as_always(shared, tmp_path):
    distiller = distilling(shared)
    distiller.fit(shared[2], epochs=2, verbose=0)
    exported = tmr.export.saved_model(distiller.student, tmp_path / "shop")
    assert (exported.path / "saved_model.pb").exists()


def test_a_teacher_of_another_catalogue_teaches_what_it_knows(shared):
    _, vocabulary, episodes = shared
    other = tmr.data.load("synthetic", n_users=30, n_items=25, interactions_per_user=5, seed=3)
    teacher = tmr.meta.Ridge(by_rank(small(tmr.data.Vocabulary.fit(other))))
    student = tmr.meta.Ridge(small(vocabulary))
    with pytest.raises(ValueError, match="the teacher's catalogue has 26 items and the student's 41"):
        Distiller(student, teacher)
    items = map_items(vocabulary, teacher.vocabulary)
    distiller = Distiller(student, LearnerTeacher(teacher, items=items), alpha=1.0, candidates="catalogue")
    distiller.compile(tmr.optimizers.RowSparseAdam(0.05))
    history = distiller.fit(episodes, epochs=8, verbose=0).history
    assert history["soft_loss"][-1] < 0.8 * history["soft_loss"][0]


@pytest.mark.slow
def test_a_learner_is_distilled_from_soft_labels_on_disk(shared, tmp_path):
    data, vocabulary, episodes = shared
    path = tmp_path / "soft.parquet"
    write_soft_labels(Shown(), data, path, vocabulary=vocabulary, top_k=6)
    teacher = SoftLabelTeacher(path, vocabulary=vocabulary, rest=0.0)
    distiller = Distiller(
        tmr.meta.Ridge(small(vocabulary)), teacher, soft_loss=RelaxedRanking(6), alpha=1.0, candidates=6
    )
    distiller.compile(tmr.optimizers.RowSparseAdam(0.05))
    history = distiller.fit(episodes, epochs=8, verbose=0).history
    assert history["soft_loss"][-1] < 0.8 * history["soft_loss"][0]


@pytest.mark.slow
def test_hints_between_learners_compare_item_vectors(shared):
    _, vocabulary, episodes = shared

    def vectors(learner, episode):
        return learner.model.encode_item(episode.query.item)

    student, teacher = tmr.meta.Ridge(small(vocabulary)), tmr.meta.Ridge(by_rank(small(vocabulary, 6)))
    hints = FeatureHints(6 + 2, vectors, vectors)
    distiller = Counting(student, teacher, hints=hints)
    distiller.compile(tmr.optimizers.RowSparseAdam(0.02))
    history = distiller.fit(episodes, epochs=6, verbose=0).history
    assert history["hint_loss"][-1] < history["hint_loss"][0]
    assert distiller.traces == 1
    parts = [history[name][0] for name in ("hard_loss", "soft_loss", "hint_loss")]
    assert history["loss"][0] == pytest.approx(np.dot([0.5, 0.5, 1.0], parts), rel=1e-5)


def test_hints_to_a_sequence_student_whose_projection_is_not_built_yet(shared):
    _, vocabulary, episodes = shared

    def vectors(model, episode):
        return model.encode_item(episode.query.item)

    student, teacher = (Sequence(vocabulary, width, blocks=1, max_length=4, seed=0) for width in (4, 6))
    distiller = Distiller(student, teacher, hints=FeatureHints(6 + 1, vectors, vectors), candidates="catalogue")
    distiller.compile(tmr.optimizers.RowSparseAdam(0.02))
    history = distiller.fit(episodes, epochs=1, verbose=0).history
    assert history["hint_loss"][0] > 0


def test_what_a_meta_learner_cannot_be_distilled_on_is_refused(shared, explicit, first_batch):
    _, vocabulary, episodes = shared
    distiller = Distiller(tmr.meta.Ridge(small(vocabulary)), Shown())
    distiller.compile("sgd")
    with pytest.raises(TypeError, match="distilled on episodes alone, .* and have no `sample_weight`. Received: tuple"):
        distiller.train_on_batch(next(iter(episodes.dataset())), sample_weight=np.ones(6))
    about_items = item_episodes(explicit.data, explicit.vocabulary, support=(0, 2), query=2, tasks_per_batch=3)
    distiller = Distiller(tmr.meta.Ridge(small(explicit.vocabulary)), Shown())
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="distilling a meta-learner needs tasks about users"):
        distiller.fit(about_items, verbose=0)
    with pytest.raises(ValueError, match="`candidates` from the catalogue need a student with a vocabulary"):
        candidates_of(first_batch(episodes), LearnerTeacher(Shown()), "catalogue", None)
