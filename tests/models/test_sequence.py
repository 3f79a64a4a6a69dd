import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec import experiment
from tfmetarec.meta import Checkpoint
from tfmetarec.models.sequence import AttentionBlock, InBatchRetrieval, SampledSoftmax, Sequence
from tfmetarec.optimizers import RowSparseAdam
from tfmetarec.tasks import Negatives
from tfmetarec.tasks.windows import Window, user_windows
from tfmetarec.transfer.distillation import Distiller


@pytest.fixture(scope="module")
def windows(implicit):
    return user_windows(implicit.data, implicit.vocabulary, length=(1, 5), windows_per_batch=6, negatives=9)


@pytest.fixture(scope="module")
def support(implicit, first_batch):
    """Six users with 0, 1, 2, 3, 4 and 0 items."""
    return first_batch(implicit.episodes).support


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(0.3 * rng.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module")
def model(implicit):
    return randomise(Sequence(implicit.vocabulary, 8, max_length=4))


def scores(model, support, item=None):
    item = model.vocabulary.catalogue if item is None else item
    return model.score(model.adapt(support), item).numpy()


def first_support(setting):
    return next(iter(setting.episodes.dataset())).support


def changed(support, change):
    """A copy of the support on which `change(items, lengths)` has been called."""
    copy = tf.nest.map_structure(np.copy, support)
    change(copy.item, copy.length)
    return copy


# -- what a state depends on -------------------------------------------------------------------------------


def test_padding_of_any_content_changes_nothing(model, support):
    def fill(item, length):
        padding = np.arange(item["item_id"].shape[1]) >= length[:, None]
        item["item_id"][padding], item["group"][padding] = 7, 1
        item["price"][padding] = np.nan
        item["item_level"][padding] = np.inf

    np.testing.assert_array_equal(scores(model, support), scores(model, changed(support, fill)))


def test_more_padding_changes_nothing(model, support):
    wider = support._replace(
        item={n: np.concatenate([v, v, v], axis=1) for n, v in support.item.items()},
        label=np.tile(support.label, 3),
    )
    np.testing.assert_allclose(scores(model, support), scores(model, wider), atol=1e-5)


def test_every_item_of_the_history_counts_and_so_does_their_order(model, support):
    def reverse_three(item, length):
        for value in item.values():
            value[3, :3] = value[3, :3][::-1].copy()

    before, after = scores(model, support), scores(model, changed(support, reverse_three))
    assert np.abs(before - after)[3].max() > 1e-3
    np.testing.assert_array_equal(np.delete(before, 3, 0), np.delete(after, 3, 0))
    for place in range(4):

        def replace(item, length, place=place):
            item["item_id"][4, place] = item["item_id"][4, place] % 40 + 1

        assert np.abs(scores(model, changed(support, replace)) - before)[4].max() > 1e-4


def test_without_a_history_users_are_told_apart_by_their_features_alone(model, support):
    def forget(item, length):
        length[:] = 0

    nothing = changed(support, forget)
    nothing.user["segment"][:] = [1, 1, 1, 2, 2, 2]
    found = scores(model, nothing)
    np.testing.assert_allclose(found[1:3], found[[0, 0]], atol=1e-6)
    assert np.abs(found[0] - found[3]).max() > 1e-3


def test_a_support_of_no_width_is_one_of_length_0(model, support):
    empty = support._replace(
        item={name: value[:, :0] for name, value in support.item.items()},
        label=support.label[:, :0],
        length=np.zeros_like(support.length),
    )
    shown = support._replace(length=np.zeros_like(support.length))
    np.testing.assert_allclose(scores(model, empty), scores(model, shown), atol=1e-6)


def test_only_the_most_recent_items_are_looked_at(model, support):
    long = support._replace(
        item={name: np.concatenate([value[::-1], value], axis=1) for name, value in support.item.items()},
        label=np.tile(support.label, 2),
        length=np.full(6, 8, np.int32),
    )
    last_four = support._replace(length=np.full(6, 4, np.int32))
    np.testing.assert_allclose(scores(model, long), scores(model, last_four), atol=1e-5)


def test_positions_are_counted_from_the_most_recent_item(implicit, support):
    model = Sequence(implicit.vocabulary, 8, blocks=1, max_length=4)
    four = support._replace(length=np.full(6, 4, np.int32))
    two = support._replace(length=np.full(6, 2, np.int32))
    before = [scores(model, four), scores(model, two)]
    moved = model.positions.numpy()
    moved[2:] += np.random.default_rng(0).normal(size=(2, 8))  # Of the third and fourth most recent item.
    model.positions.assign(moved)
    assert np.abs(scores(model, four) - before[0]).max() > 1e-4
    np.testing.assert_array_equal(scores(model, two), before[1])


def test_a_place_of_a_history_has_the_state_of_a_history_that_ends_there(implicit, support):
    model = randomise(Sequence(implicit.vocabulary, 8, blocks=2))
    model.positions.assign(np.zeros(model.positions.shape))  # They alone say how long ago the end is.
    item = model.encode_item({n: tf.constant(v) for n, v in support.item.items()})[..., :-1]
    every = model.queries(support.user, item, np.full(6, 4, np.int32)).numpy()  # (T, 5, D + 1)
    for length in range(5):
        alone = model.adapt(support._replace(length=np.full(6, length, np.int32))).numpy()
        np.testing.assert_allclose(every[:, length], alone, atol=1e-5)


def test_a_block_looks_at_places_before_and_never_after():
    block = AttentionBlock(4, heads=2, seed=1)
    inputs = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
    with tf.GradientTape() as tape:
        watched = tf.constant(inputs)
        tape.watch(watched)
        third = block(watched)[:, 2]
    reach = np.abs(tape.gradient(third, watched)[0]).sum(-1)
    assert (reach[:3] > 1e-6).all()
    assert (reach[3:] == 0).all()


# -- scores ------------------------------------------------------------------------------------------------


def test_own_candidates_have_the_scores_they_have_in_the_catalogue(model, support, implicit):
    every = scores(model, support)
    rows = np.random.default_rng(0).integers(1, implicit.vocabulary.n_items, (6, 3))
    own = scores(model, support, {name: value[rows] for name, value in implicit.vocabulary.catalogue.items()})
    np.testing.assert_allclose(own, np.take_along_axis(every, rows, 1), atol=1e-5)


def test_adapting_and_scoring_work_inside_a_graph(model, support, implicit):
    inside = tf.function(lambda s: model.score(model.adapt(s), implicit.vocabulary.catalogue), autograph=False)
    tensors = tf.nest.map_structure(tf.convert_to_tensor, support)
    np.testing.assert_allclose(inside(tensors), scores(model, support), atol=1e-5)


def test_histories_of_other_lengths_are_not_traced_anew(model, implicit):
    for width in (2, 3, 4, 5):
        features = {name: value[np.ones((2, width), int)] for name, value in implicit.vocabulary.catalogue.items()}
        user = {"user_id": np.zeros(2, np.int32), "segment": np.ones(2, np.int32)}
        model.adapt(tmr.tasks.Support(user, features, np.ones((2, width), np.float32), np.full(2, width, np.int32)))
    assert {graph.experimental_get_tracing_count() for graph in model._graphs.values()} == {1}


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_length_that_the_support_does_not_have_is_refused(model, support, wrong):
    lengths = np.array([0, 1, 2, 3, 4, wrong], np.int32)
    with pytest.raises(ValueError, match="`length` of `support` must be from 0 to 4. Received: "):
        model.adapt(support._replace(length=lengths))


# -- losses ------------------------------------------------------------------------------------------------


def window(rows, length, target, drawn, weight, log_expected):
    item = {"item_id": tf.constant(rows), "item_level": tf.math.log(tf.constant(rows, tf.float32) / 10)}
    negatives = Negatives({"item_id": tf.constant(drawn)}, tf.constant(log_expected), tf.constant(weight))
    return Window({}, item, tf.constant(length), tf.constant(target), negatives)


def test_the_sampled_softmax_is_the_hand_worked_one():
    # Two users with two places each, of which user 1 has one; items are numbers, and a query is one, too.
    made = window([[1, 2], [3, 4]], [2, 1], [[0, 1], [0, 1]], [5, 1], [[1.0, 0.0], [1.0, 1.0]], [0.5, -1.0])
    queries = tf.constant([[[1.0], [2.0]], [[-1.0], [9.0]]])
    encoded = tf.constant([[[0.3], [0.7]], [[0.4], [0.8]]])
    negatives = tf.constant([[0.2], [0.6]])

    def cross_entropy(score, *others):
        return -np.log(np.exp(score) / (np.exp(score) + np.exp(others).sum()))

    # Negative 1 is an item of user 0; what is left is corrected by how often it was expected.
    wanted = [
        cross_entropy(0.3, 0.2 - 0.5),
        cross_entropy(1.4, 0.4 - 0.5),
        cross_entropy(-0.4, -0.2 - 0.5, -0.6 + 1.0),
    ]
    assert float(SampledSoftmax()(made, queries, encoded, negatives)) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_retrieval_is_the_hand_worked_softmax_over_the_targets_of_the_batch():
    made = window([[1, 2], [3, 4]], [2, 1], [[0, 1], [0, 1]], [], [], [])
    queries = tf.constant([[[1.0], [2.0]], [[-1.0], [9.0]]])
    encoded = tf.constant([[[0.3], [0.7]], [[0.4], [0.8]]])
    # Three places are real; item r was met by a share r / 10 of the users.
    logits = np.array([1.0, 2.0, -1.0])[:, None] * np.array([0.3, 0.7, 0.4]) - np.log([0.1, 0.2, 0.3])
    wanted = -np.log(np.exp(np.diag(logits)) / np.exp(logits).sum(1))
    assert float(InBatchRetrieval()(made, queries, encoded, None)) == pytest.approx(wanted.mean(), rel=1e-5)


def test_windows_without_negatives_need_the_retrieval_loss(implicit):
    windows = user_windows(implicit.data, implicit.vocabulary, length=(1, 5), windows_per_batch=6, negatives=0)
    model = Sequence(implicit.vocabulary, 8, blocks=1)
    model.compile()
    with pytest.raises(ValueError, match="the loss 'sampled_softmax' needs negatives, and the windows have none"):
        model.fit(windows, verbose=0)
    model.compile(loss="retrieval")
    assert np.isfinite(model.fit(windows, verbose=0).history["loss"][0])


# -- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sampled_softmax", pytest.param("retrieval", marks=pytest.mark.slow)])
def test_training_finds_the_group_that_a_user_prefers(loss):
    """Users meet items of their own group alone, so that one item tells the group of all others."""
    data = tmr.data.load("synthetic", n_users=200, n_items=40, interactions_per_user=8, seed=1)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(split.train)
    windows = user_windows(split.train, vocabulary, length=(1, 5), windows_per_batch=32, negatives=40)
    model = Sequence(vocabulary, 8, blocks=1, dropout=0.0, id_dropout=0.0)
    model.compile(RowSparseAdam(0.01), loss=loss)
    losses = model.fit(windows, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    group = tmr.data.sources.synthetic.truth(n_users=200, n_items=40, seed=1)
    table = tmr.tasks.TaskTable.build(split.test, vocabulary)
    one = table.start[:-1, None]
    support = tmr.tasks.Support(
        {name: np.zeros_like(value) for name, value in table.users.take(table.user[one[:, 0]]).items()},
        table.items.take(table.item[one]),
        np.ones(one.shape, np.float32),
        np.ones(len(one), np.int32),
    )
    best = scores(model, support)[:, 1:].argmax(1)
    found = group.item_group[vocabulary.item_ids[1:][best]]
    np.testing.assert_array_equal(found, group.user_group[table.keys.to_numpy()])


def test_equal_seeds_train_to_equal_weights(implicit, windows, values_of):
    def trained():
        model = Sequence(implicit.vocabulary, 8, blocks=1, seed=3)
        model.compile(RowSparseAdam(0.01))
        model.fit(windows, epochs=1, verbose=0)
        return values_of(model)

    for a, b in zip(trained(), trained(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(implicit, windows, values_of, tmp_path):
    def train(epochs, folder):
        model = Sequence(implicit.vocabulary, 8, blocks=1)
        model.compile(RowSparseAdam(0.01))
        model.fit(windows, epochs=epochs, verbose=0, callbacks=[Checkpoint(tmp_path / folder, monitor=None)])
        return model

    train(1, "broken")
    for a, b in zip(values_of(train(2, "broken")), values_of(train(2, "whole")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_sparse_optimizer_touches_the_rows_of_the_batch_alone(implicit, windows):
    model = Sequence(implicit.vocabulary, 8, blocks=1, id_dropout=0.0)
    model.compile(RowSparseAdam(0.01))
    batch = next(iter(windows.dataset(batches=1)))
    before = model.item_encoder.id_vector.embeddings.numpy()
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    moved = np.flatnonzero((model.item_encoder.id_vector.embeddings.numpy() != before).any(1))
    met = {*batch.item["item_id"].numpy().ravel().tolist(), *batch.negatives.item["item_id"].numpy().tolist()}
    assert set(moved.tolist()) <= met


def test_the_validation_loss_is_that_of_evaluate(implicit, windows):
    model = Sequence(implicit.vocabulary, 8, blocks=1)
    model.compile()
    history = model.fit(windows, validation_data=windows, verbose=0).history
    assert history["val_loss"][0] == pytest.approx(model.evaluate(windows, verbose=0), rel=1e-5)


def test_what_is_no_window_is_refused(implicit):
    model = Sequence(implicit.vocabulary, 8, blocks=1)
    model.compile()
    with pytest.raises(TypeError, match="a sequence model trains on windows, see `user_windows`. Received: Episode"):
        model.fit(implicit.episodes.dataset(batches=1), verbose=0)


# -- as somebody's student -----------------------------------------------------------------------------------


def test_the_loss_of_an_episode_is_that_of_its_query_after_the_support(model, implicit, first_batch):
    episode = first_batch(implicit.episodes)
    state = model.adapt(episode.support)
    score, contrast = (model.score(state, part.item).numpy() for part in (episode.query, episode.query_negatives))
    each = []
    for task in range(6):
        others = np.exp(contrast[task] - episode.query_negatives.log_expected)
        others = others[episode.query_negatives.weight[task] > 0].sum()
        scores = np.exp(score[task, : episode.query.length[task]])
        each.append(-np.log(scores / (scores + others)).mean())
    loss, scores = model.query_loss(tf.nest.map_structure(tf.constant, episode))
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-4)
    np.testing.assert_allclose(scores, score, atol=1e-5)


def test_candidates_stand_side_by_side_and_their_gradients_reach_the_whole_model(implicit, first_batch):
    model = randomise(Sequence(implicit.vocabulary, 8, blocks=1, dropout=0.0, id_dropout=0.0))
    episode = tf.nest.map_structure(tf.constant, first_batch(implicit.episodes))
    groups = [episode.query.item, implicit.vocabulary.catalogue]
    with tf.GradientTape() as tape:
        loss, scores = model.candidate_scores(episode, groups, with_loss=False)
        total = tf.reduce_sum(scores**2)
    state = model.adapt(episode.support)
    np.testing.assert_allclose(scores, np.concatenate([model.score(state, g) for g in groups], axis=1), atol=1e-4)
    assert loss is None
    gradients = tape.gradient(total, [variable.value for variable in model.trainable_variables])
    assert not [v.path for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None]


def test_an_episode_without_negatives_has_no_loss(model, implicit, first_batch):
    episode = first_batch(implicit.episodes)._replace(query_negatives={})
    with pytest.raises(ValueError, match="the loss of an episode needs negatives of the query, and the episode has"):
        model.candidate_scores(episode, [])


def test_a_small_one_learns_from_a_large_one(implicit, model):
    student = Sequence(implicit.vocabulary, 4, blocks=1, heads=1)
    distiller = Distiller(student, model, alpha=0.5, candidates="catalogue")
    distiller.compile(RowSparseAdam(0.01))
    history = distiller.fit(implicit.episodes, epochs=3, verbose=0).history
    assert history["soft_loss"][-1] < history["soft_loss"][0]
    assert np.isfinite(scores(student, first_support(implicit))).all()


# -- Keras -------------------------------------------------------------------------------------------------


def test_a_saved_model_scores_as_before_and_goes_on_training(model, support, windows, tmp_path):
    model.compile(RowSparseAdam(0.01), loss="retrieval")
    model.save(tmp_path / "teacher.keras")
    again = keras.models.load_model(tmp_path / "teacher.keras")
    np.testing.assert_array_equal(scores(again, support), scores(model, support))
    assert again.vocabulary.item_ids.tolist() == model.vocabulary.item_ids.tolist()
    assert isinstance(again.window_loss, InBatchRetrieval)
    again.fit(windows, verbose=0)


def test_a_model_of_specs_alone_is_saved_too(model, support, tmp_path):
    bare = Sequence(model.specs, 8, blocks=1)
    bare.save(tmp_path / "bare.keras")
    again = keras.models.load_model(tmp_path / "bare.keras")
    np.testing.assert_array_equal(again.adapt(support), bare.adapt(support))
    with pytest.raises(ValueError, match="a model without a `vocabulary` cannot be exported"):
        again.export_top_k(tmp_path / "export")


def test_the_config_is_plain_json(model):
    text = json.dumps(model.get_config())
    assert json.dumps(Sequence.from_config(json.loads(text)).get_config()) == text


def test_an_experiment_finds_it_by_the_name_of_its_file():
    assert experiment.find("models", "sequence") is Sequence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "`embedding_dim` must be at least 1. Received: embedding_dim=0"),
        ({"blocks": 0}, "`blocks` must be at least 1. Received: blocks=0"),
        ({"max_length": 0}, "`max_length` must be at least 1. Received: max_length=0"),
        ({"embedding_dim": 8, "heads": 3}, "`embedding_dim` must be a multiple of `heads`. Received: .*=8, heads=3"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and less than 1. Received: dropout=1.0"),
    ],
)
def test_options_out_of_range_are_refused(implicit, options, message):
    with pytest.raises(ValueError, match=message):
        Sequence(implicit.vocabulary, **options)


def test_explicit_feedback_is_refused(explicit):
    with pytest.raises(ValueError, match="a sequence model trains on choices, and its vocabulary is of explicit"):
        Sequence(explicit.vocabulary, 8).compile()


def test_another_loss_and_metrics_are_refused(implicit):
    model = Sequence(implicit.vocabulary, 8, blocks=1)
    with pytest.raises(ValueError, match="`loss` must be one of 'sampled_softmax', 'retrieval'. Received: loss='mse'"):
        model.compile(loss="mse")
    with pytest.raises(ValueError, match="`metrics` must be left out"):
        model.compile(metrics=["mae"])


# -- judged and served -------------------------------------------------------------------------------------


def test_it_is_judged_beside_the_floors(implicit, model):
    table = tmr.evaluation.cold_start({"teacher": model}, implicit.data, train=implicit.data, shots=(0, 2), query=3)
    assert table.summary["learner"].unique(maintain_order=True).to_list()[-1] == "teacher"


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "teacher"
    model.export_top_k(path, top_k=5)
    return path


def recommend(path, feed):
    """What the C++ server would answer: `tf.compat.v1.saved_model.load` reads a SavedModel as it does."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.compat.v1.logging, "warning", lambda *_: None)
            signature = tf.compat.v1.saved_model.load(session, ["serve"], str(path)).signature_def["recommend"]
        wanted = {name: info.name for name, info in signature.outputs.items()}
        return session.run(wanted, {signature.inputs[name].name: value for name, value in feed.items()})


def test_the_exported_signature_gives_the_best_items_that_are_not_in_the_history(exported, model, support):
    vocabulary = model.vocabulary
    every = scores(model, support)
    every[:, 0] = -np.inf
    for row, length in enumerate(support.length):
        every[row, support.item["item_id"][row, :length]] = -np.inf
    best = np.argsort(-every, axis=1)[:, :5]
    segments = np.concatenate([[""], vocabulary.known_values("user", "segment")])
    answer = recommend(
        exported,
        {
            "history": vocabulary.item_ids[support.item["item_id"]],
            "history_length": support.length,
            "segment": segments[support.user["segment"]].tolist(),
        },
    )
    np.testing.assert_allclose(answer["scores"], np.take_along_axis(every, best, 1), atol=1e-4)
    np.testing.assert_array_equal(answer["items"], vocabulary.item_ids[best])


def test_an_exported_history_may_be_longer_than_the_model_looks_back_and_hold_unknown_ids(exported, model):
    ids = model.vocabulary.item_ids
    long = recommend(exported, {"history": [ids[1:8]], "history_length": [7], "segment": ["no such segment"]})
    assert not set(long["items"][0]) & set(ids[1:8])
    unknown = recommend(exported, {"history": [[10**9]], "history_length": [1], "segment": [""]})
    assert np.isfinite(unknown["scores"]).all()
    assert 0 not in model.vocabulary.item_rows(unknown["items"])


def test_the_tables_of_ids_and_content_stay_behind(exported, model):
    stored = {tuple(shape) for _, shape in tf.train.list_variables(str(exported / "variables" / "variables"))}
    assert (model.vocabulary.n_items, 9) in stored
    assert (model.vocabulary.n_items, 8) not in stored


def test_a_length_of_the_list_below_one_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`top_k` must be at least 1. Received: top_k=0"):
        model.export_top_k(tmp_path / "export", top_k=0)
