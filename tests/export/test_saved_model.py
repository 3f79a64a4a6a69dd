import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.export import GateError, Holdout, ServedLearner, TwoStage, saved_model, versions
from tfmetarec.export.signatures import DESCRIPTIONS


@pytest.fixture(scope="module")
def published(shops, make_learner, tmp_path_factory):
    """One export of a learner from counted purchases, as version 1 of `shop`."""
    learner = make_learner(shops["implicit"][1])
    base = tmp_path_factory.mktemp("models") / "shop"
    return learner, saved_model(learner, base, top_k=5, warmup_batches=(1, 3)), base


def everything_in(base):
    return sorted(path.name for path in base.iterdir())


def test_the_first_export_is_version_one_and_nothing_else_is_there(published):
    _, export, base = published
    assert (export.version, export.path) == (1, base / "1")
    assert everything_in(base) == ["1"]
    assert max(export.differences.values()) < 1e-5


def test_files_a_server_needs_are_whole_and_readable(published):
    _, export, _ = published
    names = {str(path.relative_to(export.path)) for path in export.path.rglob("*") if path.is_file()}
    assert {
        "saved_model.pb",
        "variables/variables.index",
        "assets.extra/tfmetarec.json",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/vocabulary/items.parquet",
    } <= names
    assert export.path.stat().st_mode & 0o055 == 0o055  # A server runs as somebody else.


def test_no_signature_asks_for_xla(published):
    _, export, _ = published
    assert b"_XlaMustCompile" not in (export.path / "saved_model.pb").read_bytes()


def test_no_users_id_is_anywhere_in_the_export(published):
    _, export, _ = published
    files = [path for path in export.path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"zq-secret" in path.read_bytes() for path in files)


def test_embedding_tables_that_no_request_reads_stay_behind(published):
    learner, export, _ = published
    stored = {tuple(shape) for _, shape in tf.train.list_variables(str(export.path / "variables" / "variables"))}
    vocabulary = learner.vocabulary
    words = next(spec for spec in vocabulary.specs.item if spec.name == "blurb")
    assert (vocabulary.n_items - 1, 6) in stored  # Items are encoded already: their vectors travel, once,
    assert (vocabulary.n_items, 6) not in stored
    assert (vocabulary.n_items, 4) not in stored  # and the table of ids that these were made of does not.
    assert any(shape[:1] == (words.size,) for shape in stored)  # New items are encoded from their words.


def test_the_card_says_what_this_is(published):
    _, export, _ = published
    card = json.loads((export.path / "assets.extra" / "tfmetarec.json").read_text())
    assert (card["learner"], card["model"], card["data"], card["feedback"]) == ("MAML", "TwoTower", "shop", "implicit")
    assert (card["items"], card["top_k"]) == (12, 5)
    assert card["settings"]["inner_steps"] == 2
    assert card["settings"]["inner_learning_rate"] == 0.2
    assert set(card["signatures"]) == set(DESCRIPTIONS)
    assert card["filters"] == {"shelf": "only_shelf", "marks": "only_marks"}
    assert (card["weights"], card["warmup_batches"], card["search"]) == ("float32", [1, 3], "exact over 12 items")
    assert card["versions"]["tensorflow"] == tf.__version__


def test_the_vocabulary_beside_it_loads(published):
    learner, export, _ = published
    loaded = tmr.data.Vocabulary.load(export.path / "assets.extra" / "vocabulary")
    assert loaded.item_ids.tolist() == learner.vocabulary.item_ids.tolist()


def test_there_is_one_warm_up_record_per_signature_and_batch(published):
    from tensorflow_serving.apis import prediction_log_pb2

    _, export, _ = published
    found = []
    for record in tf.data.TFRecordDataset(str(export.path / "assets.extra" / "tf_serving_warmup_requests")):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        batches = {tensor.tensor_shape.dim[0].size for tensor in request.inputs.values()}
        assert len(batches) == 1
        found.append((request.model_spec.signature_name, batches.pop(), request.model_spec.name))
    assert sorted(found) == sorted((name, batch, "shop") for name in DESCRIPTIONS for batch in (1, 3))


def test_warm_up_records_run_through_the_loaded_signatures(published):
    """As a server does before it calls a version available."""
    from tensorflow_serving.apis import prediction_log_pb2

    _, export, _ = published
    loaded = tf.saved_model.load(str(export.path))
    for record in tf.data.TFRecordDataset(str(export.path / "assets.extra" / "tf_serving_warmup_requests")):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert all(len(value) == len(next(iter(inputs.values()))) for value in outputs.values())


def test_what_is_written_answers_as_the_live_learner(published):
    learner, export, _ = published
    signature = tf.saved_model.load(str(export.path)).signatures["adapt_and_score"]
    live = ServedLearner(learner, 5).signatures()["adapt_and_score"]
    request = tmr.export.gate.example_request(
        ServedLearner(learner, 5), "adapt_and_score", batch=3, support=4, candidates=6, seed=5
    )
    inputs = {name: tf.constant(value) for name, value in request.items()}
    np.testing.assert_allclose(signature(**inputs)["scores"], live(**inputs)["scores"], rtol=1e-5, atol=1e-6)


def test_an_export_that_answers_otherwise_is_not_published(published, monkeypatch, tmp_path):
    learner, _, _ = published
    right = ServedLearner.adapt_and_score
    off = lambda self, **inputs: {"scores": right(self, **inputs)["scores"] + 1e-2}  # noqa: E731
    monkeypatch.setattr(ServedLearner, "adapt_and_score", off)
    with pytest.raises(
        GateError, match=r"adapt_and_score/0 answers 'scores' differently from the live model: up to 0.01 apart"
    ):
        saved_model(learner, tmp_path / "shop", top_k=5)
    assert everything_in(tmp_path / "shop") == []


@pytest.mark.slow
def test_two_exports_at_once_get_versions_of_their_own(published, shops, make_learner):
    _, first, base = published
    learners = [make_learner(shops["explicit"][1]) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        exports = list(pool.map(lambda learner: saved_model(learner, base, warmup_batches=(1,)), learners))
    assert sorted(export.version for export in exports) == [first.version + 1, first.version + 2]
    assert versions(base) == [1, 2, 3]
    assert everything_in(base) == ["1", "2", "3"]
    assert all((export.path / "saved_model.pb").is_file() for export in exports)


def test_versions_are_the_numbered_folders_in_order(tmp_path):
    for name in ("2", "10", "writing-7", "latest", "1.tmp"):
        (tmp_path / name).mkdir()
    assert versions(tmp_path) == [2, 10]
    assert versions(tmp_path / "nowhere") == []


def test_too_many_warm_up_requests_are_refused_and_leave_nothing(published, tmp_path):
    learner, _, _ = published
    with pytest.raises(ValueError, match="`requests` must be at most 1000. Received: 1001"):
        saved_model(learner, tmp_path / "shop", warmup_batches=(1,) * 91)
    assert everything_in(tmp_path / "shop") == []


# -- options ------------------------------------------------------------------------------------------------------------


def test_a_two_stage_search_is_measured_gated_and_said(shops, make_learner, tmp_path):
    data, vocabulary = shops["implicit"]
    holdout = Holdout(data, shots=(2,), query=2)
    found = saved_model(
        make_learner(vocabulary), tmp_path / "shop", top_k=2, search=TwoStage(0.2, 6), holdout=holdout, dry_run=True
    )
    assert re.fullmatch(
        r"two stages: \d of 6 clusters, \d+\.\d% of 12 items, recall@2 [01]\.\d+ on held-out users", found.search
    )
    assert (found.path, found.version) == (None, 1)
    assert everything_in(tmp_path / "shop") == []


@pytest.mark.slow
def test_only_the_newest_versions_are_kept(published, tmp_path):
    learner, _, _ = published
    base = tmp_path / "shop"
    exports = [saved_model(learner, base, top_k=2, keep=1) for _ in range(2)]
    assert [export.removed for export in exports] == [(), (1,)]
    assert everything_in(base) == ["2"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_an_export_in_fewer_bits_is_smaller_and_passes_the_gate(shops, weights, tmp_path):
    data, vocabulary = shops["implicit"]
    learner = tmr.meta.MAML(tmr.models.TwoTower(vocabulary, 512))
    holdout = Holdout(data, shots=(2,), query=2)
    small = saved_model(learner, tmp_path / "small", weights=weights, holdout=holdout)
    whole = saved_model(learner, tmp_path / "whole")
    sizes = [sum(file.stat().st_size for file in export.path.rglob("variables.data*")) for export in (small, whole)]
    assert sizes[0] < sizes[1]
    assert small.precision.metric == "ndcg@12"
    assert small.precision.change == pytest.approx(small.precision.reduced / small.precision.float32 - 1)
    assert abs(small.precision.change) < 0.1
    assert whole.precision is None


def test_a_search_in_two_stages_needs_users_and_a_dot_product(shops, make_learner, tmp_path):
    data, vocabulary = shops["implicit"]
    with pytest.raises(ValueError, match="`search` needs a `holdout`: its recall is measured on users"):
        saved_model(make_learner(vocabulary), tmp_path / "shop", search=TwoStage())
    ranker = make_learner(shops["explicit"][1], tmr.models.Ranker)
    with pytest.raises(
        ValueError, match="`search` in two stages needs a model that scores by a dot product. Received: R"
    ):
        saved_model(ranker, tmp_path / "shop", search=TwoStage(), holdout=Holdout(data))
    with pytest.raises(ValueError, match="`weights` must be one of float32, float16, int8. Received: weights='int4'"):
        saved_model(ranker, tmp_path / "shop", weights="int4")
    with pytest.raises(ValueError, match="`keep` must be at least 1. Received: keep=0"):
        saved_model(ranker, tmp_path / "shop", keep=0)
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize("batches", [(), (0,), (1, -1)])
def test_warm_up_sizes_must_be_sizes(published, tmp_path, batches):
    learner, _, _ = published
    with pytest.raises(ValueError, match="`warmup_batches` must hold sizes of at least 1. Received: warmup_batches="):
        saved_model(learner, tmp_path / "shop", warmup_batches=batches)
