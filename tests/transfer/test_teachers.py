"""Teachers of every kind answer alike; features and catalogues are mapped; what does not fit is refused."""

import json

import keras
import numpy as np
import polars as pl
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.models.baselines import Popularity, Ratings
from tfmetarec.tasks import Support
from tfmetarec.transfer.soft_labels import SoftLabelTeacher, write_soft_labels
from tfmetarec.transfer.teachers import (
    LearnerTeacher,
    ModelTeacher,
    SavedModelTeacher,
    logits,
    map_items,
    teacher_of,
)

FEATURES = {"a": tf.constant([1.0, 2.0, 3.0]), "b": tf.constant([10.0, 20.0, 30.0])}


def keras_model(activation=None, names=("a", "b")):
    """`a + 2 b`, through an activation."""
    inputs = {name: keras.Input((), name=name) for name in names}
    both = keras.ops.stack([inputs[name] for name in names], axis=1)
    score = keras.layers.Dense(1, activation, use_bias=False, name="score")(both)
    model = keras.Model(inputs, score)
    model.set_weights([np.asarray([[1.0], [2.0]])])
    return model


def catalogue_of(ids):
    """A vocabulary of which these are the items; one user bought them all."""
    table = pl.DataFrame({"user_id": [0] * len(ids), "item_id": ids})
    return tmr.data.Vocabulary.fit(tmr.data.Interactions.from_frames(table, feedback="implicit", name="shop"))


def support_of(items, length, **user):
    """Supports `(T, S)` of item rows."""
    items = np.asarray(items, np.int32)
    users = {"user_id": np.zeros(len(items), np.int32), **user}
    return Support(users, {"item_id": items}, np.ones(items.shape, np.float32), np.asarray(length, np.int32))


class Listening:
    """A recommender in NumPy that notes what it is shown, and scores an item by its row and the items shown."""

    def __init__(self):
        self.seen = []

    def adapt(self, support):
        self.seen.append(support)
        return np.asarray(support.length)

    def score(self, state, item):
        rows = np.asarray(item["item_id"])
        return np.broadcast_to(10.0 * rows, (len(state), rows.shape[-1])) + state[:, None]


# -- models of rows ------------------------------------------------------------------------------------------------


def test_a_keras_model_answers_in_lists_of_one():
    answer = ModelTeacher(keras_model()).rows(FEATURES)
    assert answer.score.numpy().tolist() == [[21.0], [42.0], [63.0]]
    assert answer.present.numpy().tolist() == [[1.0]] * 3


def test_a_teacher_runs_in_inference_mode():
    inputs = keras.Input((2,))
    noisy = keras.layers.Dropout(0.9)(keras.layers.BatchNormalization()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(noisy))
    teacher = teacher_of(model)
    before = [variable.numpy() for variable in model.variables]
    answers = [teacher.rows(tf.constant([[5.0, -3.0]])).score.numpy() for _ in range(2)]
    np.testing.assert_array_equal(*answers)
    np.testing.assert_array_equal(answers[0], model(tf.constant([[5.0, -3.0]]), training=False))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_features_are_renamed_or_made_anew():
    model = keras_model(names=("price", "age"))
    renamed = ModelTeacher(model, features={"a": "price", "b": "age"}).rows(FEATURES)
    made = ModelTeacher(model, features=lambda f: {"price": f["a"], "age": f["b"]}).rows(FEATURES)
    np.testing.assert_array_equal(renamed.score, [[21.0], [42.0], [63.0]])
    np.testing.assert_array_equal(made.score, renamed.score)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_an_activation_is_undone(activation):
    values = tf.constant([[0.5, -2.0, 1.0]])
    undone = logits(getattr(tf.nn, activation)(values), activation)
    difference = (undone - values).numpy()
    np.testing.assert_allclose(difference, difference[:, :1].repeat(3, 1), atol=1e-5)
    if activation == "sigmoid":
        np.testing.assert_allclose(difference, 0.0, atol=1e-5)
    teacher = ModelTeacher(lambda features: getattr(tf.nn, activation)(features["a"]), activation=activation)
    np.testing.assert_allclose(teacher.rows({"a": values}).score, undone, rtol=1e-6)


def test_one_of_several_outputs_is_named():
    model = lambda features: {"score": features["a"], "other": features["b"]}  # noqa: E731
    assert ModelTeacher(model, output="other").rows(FEATURES).score.numpy().tolist() == [[10.0], [20.0], [30.0]]
    with pytest.raises(ValueError, match="`output` must say which output of the teacher holds its scores"):
        ModelTeacher(model).rows(FEATURES)


def test_models_of_tf_keras_and_tfrs_teach():
    import tensorflow_recommenders as tfrs
    import tf_keras

    class Rating(tfrs.Model):
        """Its loop over a tensor needs autograph, which Keras 3 switches off."""

        def __init__(self):
            super().__init__()
            self.table = tf_keras.layers.Embedding(5, 2)
            self.drop = tf_keras.layers.Dropout(0.5)
            self.task = tfrs.tasks.Ranking(loss=tf_keras.losses.MeanSquaredError())

        def call(self, features, training=None):
            total = self.drop(tf.reduce_sum(self.table(features["item_id"]), -1), training=training)
            for _ in tf.range(2):
                total = 2.0 * total
            return total

        def compute_loss(self, inputs, training=False):
            return self.task(labels=inputs["label"], predictions=self(inputs))

    model = Rating()
    teacher = teacher_of(model)
    items = tf.constant([1, 4])
    answer = tf.function(teacher.rows, autograph=False)({"item_id": items})
    expected = 4 * tf.reduce_sum(tf.gather(model.table.embeddings, items), 1)
    np.testing.assert_allclose(answer.score[:, 0], expected, rtol=1e-6)
    assert len(teacher.variables) == 1


def test_a_signature_teaches_without_keras(tmp_path):
    class Product(tf.Module):
        def __init__(self):
            self.factor = tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "item"), tf.TensorSpec([None], tf.float32, "b")])
        def serve(self, item, b):
            return {"score": self.factor * tf.cast(item, tf.float32) + b, "other": b}

    module = Product()
    tf.saved_model.save(module, tmp_path / "model", {"rate": module.serve})
    options = {"signature": "rate", "output": "score"}
    teacher = SavedModelTeacher(tmp_path / "model", features={"item_id": "item"}, **options)
    features = {"item_id": tf.constant([1, 2]), "b": tf.constant([0.5, 0.0]), "unused": tf.constant([1, 1])}
    assert teacher.rows(features).score.numpy().tolist() == [[3.5], [6.0]]
    assert [float(variable) for variable in teacher.variables] == [3.0]
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(teacher))))
    np.testing.assert_array_equal(again.rows(features).score, teacher.rows(features).score)
    with pytest.raises(ValueError, match="`signature` must be one of rate. Received: signature='serving_default'"):
        SavedModelTeacher(tmp_path / "model", output="score")
    with pytest.raises(ValueError, match="`output` must be one of other, score. Received: output='scores'"):
        SavedModelTeacher(tmp_path / "model", signature="rate", output="scores")
    with pytest.raises(ValueError, match="needs the inputs b, item, and the features lack item: rename or make them"):
        SavedModelTeacher(tmp_path / "model", **options).rows(features)


# -- catalogues ------------------------------------------------------------------------------------------------------


def test_items_are_found_in_the_other_catalogue_by_their_ids():
    student, teacher = catalogue_of([30, 10, 20]), catalogue_of([20, 40, 30, 50])
    # Rows in order of ids: student 10, 20, 30; teacher 20, 30, 40, 50.
    assert map_items(student, teacher).tolist() == [-1, -1, 1, 2]
    assert map_items(student, teacher, {10: 50, 20: 99}).tolist() == [-1, 4, -1, -1]
    names = catalogue_of(["tea", "rice"])
    assert map_items(student, names, {20: "tea"}).tolist() == [-1, -1, 2, -1]
    with pytest.raises(ValueError, match="`items` must hold at least one item that the teacher knows. Received: none"):
        LearnerTeacher(Listening(), items=map_items(student, names))


def test_rows_of_items_become_the_teachers_and_the_unknown_are_left_out():
    teacher = ModelTeacher(
        lambda features: features["quality"] + features["bonus"],
        items=[-1, 2, -1, 0],
        catalogue={"quality": np.asarray([5.0, 6.0, 7.0], np.float32)},
    )
    answer = teacher.rows({"item_id": tf.constant([1, 2, 3]), "bonus": tf.constant([0.5, 0.5, 0.5])})
    assert answer.present.numpy().tolist() == [[1.0], [0.0], [1.0]]
    assert answer.score.numpy()[[0, 2]].tolist() == [[7.5], [5.5]]
    lists = teacher.rows({"item_id": tf.constant([[3, 2], [1, 1]]), "bonus": tf.zeros((2, 2))})
    assert lists.present.numpy().tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert lists.score.numpy()[lists.present.numpy() > 0].tolist() == [5.0, 7.0, 7.0]


def test_columns_of_a_whole_catalogue_become_the_students():
    teacher = ModelTeacher(lambda features: features["scores"], items=[3, -1, 0])
    answer = teacher.rows({"scores": tf.constant([[0.0, 1.0, 2.0, 3.0]])})
    assert answer.present.numpy().tolist() == [[1.0, 0.0, 1.0]]
    assert answer.score.numpy()[0, [0, 2]].tolist() == [3.0, 0.0]
    with pytest.raises(ValueError, match="of which there are 3. Received: 3, for the 3 columns of the student"):
        teacher.rows({"scores": tf.zeros((1, 3))})


def test_catalogues_that_do_not_fit_are_refused_with_both_sizes():
    student, teacher = catalogue_of([1, 2, 3]), catalogue_of([1, 2, 3, 4, 5])
    learner = Listening()
    learner.vocabulary = teacher
    with pytest.raises(ValueError, match="the teacher's catalogue has 6 items and the student's 4"):
        LearnerTeacher(learner).check_catalogue(student)
    with pytest.raises(ValueError, match="of the 4 items of the student's catalogue .* Received: 3 rows, into .* of 6"):
        LearnerTeacher(learner, items=[-1, 1, 2]).check_catalogue(student)
    with pytest.raises(ValueError, match=r"which has 6 \(the unknown one included\). Received: 6, for the 4 rows"):
        LearnerTeacher(learner, items=[-1, 1, 2, 6])
    learner.vocabulary = catalogue_of([1, 2, 4])
    with pytest.raises(ValueError, match="has 4 items and the student's 4 .* they are not the same"):
        LearnerTeacher(learner).check_catalogue(student)
    LearnerTeacher(learner, items=map_items(student, learner.vocabulary)).check_catalogue(student)
    baseline = Popularity().fit(Ratings(np.ones(3, int), np.arange(1, 4), np.ones(3, np.float32), 2, 9))
    with pytest.raises(ValueError, match="the teacher's catalogue has 9 items and the student's 4"):
        teacher_of(baseline).check_catalogue(student)


@pytest.mark.parametrize("items", [[[1]], [], [0.5], [-2]])
def test_a_map_of_items_that_is_none_is_refused(items):
    with pytest.raises(ValueError, match="`items` must be a list of the teacher's rows, -1 for an item"):
        ModelTeacher(keras_model(), items=items)


# -- teachers that adapt -----------------------------------------------------------------------------------------------


def test_a_recommender_in_numpy_sees_the_support_inside_a_graph():
    learner = Listening()
    teacher = teacher_of(learner)
    support = tf.nest.map_structure(tf.constant, support_of([[1, 2], [3, 0]], [2, 1]))
    groups = [{"item_id": tf.constant([[4, 5, 6], [7, 8, 9]])}, {"item_id": tf.constant([1, 2])}]
    answer = tf.function(teacher.candidates, autograph=False)(support, groups)
    assert answer.score.numpy().tolist() == [[42.0, 52, 62, 12, 22], [71.0, 81, 91, 11, 21]]
    assert answer.present.numpy().tolist() == [[1.0] * 5] * 2
    assert answer.score.shape == (2, 5)
    assert learner.seen[0].item["item_id"].tolist() == [[1, 2], [3, 0]]


def test_what_the_teacher_does_not_know_of_the_support_it_does_not_see():
    learner = Listening()
    teacher = LearnerTeacher(learner, items=[-1, 5, -1, 7, 8], catalogue={"item_id": np.arange(9)})
    support = support_of([[1, 2, 3], [2, 2, 4], [3, 4, 2]], [3, 2, 1])
    support.label[:] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    answer = teacher.candidates(support, [{"item_id": np.asarray([1, 2, 4], np.int32)}])
    (seen,) = learner.seen
    assert seen.length.tolist() == [2, 0, 1]
    assert seen.item["item_id"][0, :2].tolist() == [5, 7]
    assert seen.label[0, :2].tolist() == [1.0, 3.0]
    assert seen.item["item_id"][2, 0] == 7
    assert answer.present.numpy().tolist() == [[1.0, 0.0, 1.0]] * 3
    assert answer.score.numpy()[:, [0, 2]].tolist() == [[52.0, 82.0], [50.0, 80.0], [51.0, 81.0]]


def test_a_learner_answers_as_it_adapts_and_scores(implicit, first_batch):
    learner = tmr.meta.Ridge(tmr.models.TwoTower(implicit.vocabulary, 4))
    episode = first_batch(implicit.episodes)
    groups = [episode.query.item, episode.query_negatives.item]
    answer = tf.function(teacher_of(learner).candidates, autograph=False)(episode.support, groups)
    state = learner.adapt(episode.support)
    expected = np.concatenate([learner.score(state, group) for group in groups], 1)
    np.testing.assert_allclose(answer.score, expected, rtol=1e-5, atol=1e-6)


def test_a_model_of_rows_scores_candidates_with_the_features_of_their_user():
    teacher = ModelTeacher(lambda f: 10.0 * f["taste"] + f["price"][:, 0])
    support = support_of([[1]] * 2, [0, 1], taste=np.asarray([1.0, 2.0], np.float32))
    price = np.asarray([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]], np.float32)
    own = {"item_id": np.ones((2, 3), np.int32), "price": price}
    common = {"item_id": np.ones(2, np.int32), "price": price[0, :2]}
    assert teacher.candidates(support, [own, common]).score.numpy().tolist() == [
        [11.0, 12, 13, 11, 12],
        [24.0, 25, 26, 21, 22],
    ]


def test_a_teacher_that_adapts_cannot_score_rows_and_says_what_can():
    with pytest.raises(TypeError, match="write down what it says with `write_soft_labels`"):
        teacher_of(Listening()).rows(FEATURES)


def test_what_cannot_teach_is_refused():
    with pytest.raises(
        TypeError, match="`teacher` must be a model, something with `adapt` and `score`.* Received: int"
    ):
        teacher_of(3)
    with pytest.raises(ValueError, match="`learner` must have `adapt"):
        LearnerTeacher(keras_model())
    with pytest.raises(ValueError, match="`activation` must be one of linear, sigmoid, softmax. Received: activation"):
        ModelTeacher(keras_model(), activation="relu")
    with pytest.raises(ValueError, match="`features` must be a dict of names or a function"):
        ModelTeacher(keras_model(), features="a")
    with pytest.raises(
        ValueError, match=r"scores must be \(B,\), \(B, N\) or \(B, N, 1\). Received: shape \(3, 1, 2\)"
    ):
        ModelTeacher(lambda f: tf.zeros((3, 1, 2))).rows(FEATURES)


def test_a_keras_teacher_comes_back_from_its_config():
    teacher = ModelTeacher(keras_model(), features={"c": "a"}, items=[-1, 0], catalogue={"b": np.ones(1, np.float32)})
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(teacher)))
    again = keras.saving.deserialize_keras_object(config)
    again.model.set_weights(teacher.model.get_weights())
    features = {"c": tf.constant([3.0]), "item_id": tf.constant([1])}
    assert again.rows(features).score.numpy().tolist() == teacher.rows(features).score.numpy().tolist() == [[5.0]]
    with pytest.raises(ValueError, match="a teacher of type function cannot be saved with the distiller"):
        ModelTeacher(lambda f: f["a"]).get_config()
    with pytest.raises(ValueError, match="a teacher of type Listening cannot be saved with the distiller"):
        teacher_of(Listening()).get_config()


# -- soft labels on disk -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop():
    data = tmr.data.load("synthetic", n_users=12, n_items=20, interactions_per_user=4, seed=0)
    return data, tmr.data.Vocabulary.fit(data, user_ids=True)


def test_soft_labels_are_written_for_every_user_and_read_again(shop, tmp_path):
    data, vocabulary = shop
    learner = Listening()
    written = write_soft_labels(learner, data, tmp_path / "soft.parquet", vocabulary=vocabulary, top_k=5, batch_size=5)
    assert written == 12
    frame = pl.read_parquet(tmp_path / "soft.parquet")
    assert frame["user_id"].to_list() == sorted(data.table["user_id"].unique())
    met = {user: set(items) for user, items in data.table.group_by("user_id").agg("item_id").iter_rows()}
    for user, items, scores in frame.iter_rows():
        # An item scores 10 times its row, and 4 for the support: the last rows that the user has not met come first.
        left = [row for row in range(vocabulary.n_items - 1, 0, -1) if vocabulary.item_ids[row] not in met[user]][:5]
        assert items == vocabulary.item_ids[left].tolist()
        assert scores == [10.0 * row + 4 for row in left]
    teacher = SoftLabelTeacher(tmp_path / "soft.parquet", vocabulary=vocabulary)
    user = vocabulary.rows("user", "user_id", tf.constant(frame["user_id"].to_list()[:2], tf.int64))
    listed = vocabulary.item_rows(np.asarray(frame["item_id"].to_list()[0]))
    outside = vocabulary.item_rows([next(iter(met[frame["user_id"][0]]))])
    item = np.concatenate([listed[[3]], outside])[None].repeat(2, 0)
    answer = teacher.rows({"user_id": user, "item_id": tf.constant(item)})
    assert answer.present.numpy()[0].tolist() == [1.0, 0.0]
    assert answer.score.numpy()[0, 0] == frame["score"][0][3]


def test_lists_are_shorter_where_the_teacher_knows_fewer_items(shop, tmp_path):
    data, vocabulary = shop
    items = np.full(vocabulary.n_items, -1)
    items[[2, 5]] = [1, 2]
    teacher = LearnerTeacher(Listening(), items=items)
    options = {"vocabulary": vocabulary, "exclude_support": False}
    write_soft_labels(teacher, data, tmp_path / "soft.parquet", **options)
    frame = pl.read_parquet(tmp_path / "soft.parquet")
    assert frame["item_id"].to_list() == [vocabulary.item_ids[[5, 2]].tolist()] * 12


def test_a_teacher_sees_only_the_last_of_the_support_if_asked(shop, tmp_path):
    data, vocabulary = shop
    learner = Listening()
    write_soft_labels(learner, data, tmp_path / "soft.parquet", vocabulary=vocabulary, support=2)
    (seen,) = learner.seen
    latest = data.table.sort("user_id", "timestamp").group_by("user_id", maintain_order=True).tail(2)
    assert seen.length.tolist() == [2] * 12
    assert vocabulary.item_ids[seen.item["item_id"]].ravel().tolist() == latest["item_id"].to_list()


def labels(path, **columns):
    pl.DataFrame(
        {"user_id": [1, 2, 5], "item_id": [[3, 4], [], [7]], "score": [[9.0, 8.0], [], [7.0]], **columns}
    ).write_parquet(path)
    return path


def test_users_without_a_list_and_items_outside_it_say_nothing(tmp_path):
    path = labels(tmp_path / "soft.parquet")
    features = {"user_id": tf.constant([1, 2, 5, 3]), "item_id": tf.constant([[3, 7, 4]] * 4)}
    answer = SoftLabelTeacher(path).rows(features)
    assert answer.present.numpy().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert (answer.score.numpy() * answer.present.numpy()).tolist() == [[9, 0, 8], [0, 0, 0], [0, 7, 0], [0, 0, 0]]
    answer = SoftLabelTeacher(path, rest=-1.0).rows(features)
    assert answer.present.numpy().tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert answer.score.numpy()[:3].tolist() == [[9, -1, 8], [-1, -1, -1], [-1, 7, -1]]


def test_soft_labels_score_candidates_of_users(tmp_path):
    teacher = SoftLabelTeacher(labels(tmp_path / "soft.parquet"))
    support = support_of([[1]] * 2, [0, 0])._replace(user={"user_id": np.asarray([5, 1], np.int32)})
    groups = [{"item_id": np.asarray([[7, 1], [1, 4]], np.int32)}, {"item_id": np.asarray([3], np.int32)}]
    answer = tf.function(teacher.candidates, autograph=False)(support, groups)
    assert (answer.score.numpy() * answer.present.numpy()).tolist() == [[7, 0, 0], [0, 8, 9]]
    assert answer.present.numpy().tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"user_id": [1, 1, 2]}, "one list for each user. Received: user 1 more than once"),
        ({"score": [[1.0], [], [2.0]]}, "must be lists of equal length. Received: others for user 1"),
        ({"score": [[1.0, np.nan], [], [2.0]]}, "soft labels must be finite. Received: NaN or infinity in"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        SoftLabelTeacher(labels(tmp_path / "soft.parquet", **columns))


def test_soft_labels_without_a_column_or_a_vocabulary_are_refused(shop, tmp_path):
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "soft.parquet")
    with pytest.raises(
        ValueError, match="need the columns user_id, item_id and score. Received: .* without item_id, score"
    ):
        SoftLabelTeacher(tmp_path / "soft.parquet")
    named = labels(tmp_path / "soft.parquet", user_id=["x", "y", "z"])
    with pytest.raises(ValueError, match="`vocabulary` must be given where ids are no row numbers"):
        SoftLabelTeacher(named).check_catalogue(None)
    with pytest.raises(ValueError, match="`vocabulary` must keep rows of users .* fit it with user_ids=True"):
        SoftLabelTeacher(named, vocabulary=tmr.data.Vocabulary.fit(shop[0]))
    with pytest.raises(ValueError, match="`rest` must be finite, or None. Received: rest=-inf"):
        SoftLabelTeacher(labels(tmp_path / "soft.parquet"), rest=-np.inf)
    with pytest.raises(ValueError, match="`top_k` must be at least 1. Received: top_k=0"):
        write_soft_labels(Listening(), shop[0], tmp_path / "soft.parquet", vocabulary=shop[1], top_k=0)


def test_a_teacher_that_fails_leaves_no_file(shop, tmp_path):
    data, vocabulary = shop

    class Broken(Listening):
        def score(self, state, item):
            return np.nan * super().score(state, item)

    with pytest.raises(ValueError, match="the teacher must give finite scores. Received: NaN or infinity"):
        write_soft_labels(Broken(), data, tmp_path / "soft.parquet", vocabulary=vocabulary)
    assert not list(tmp_path.iterdir())
