import numpy as np
import pytest
import tensorflow as tf

import tfmetarec as tmr
from tfmetarec.export import GateError, lite_model
from tfmetarec.export.quiet import silently


def answer(path, **inputs):
    with silently():
        return tf.lite.Interpreter(str(path)).get_signature_runner("adapt_and_score")(**inputs)["scores"]


NOBODY = {
    "user_age": np.zeros(1, np.float32),
    "user_hobbies": np.zeros((1, 3), np.int32),
    "user_hobbies_length": np.zeros(1, np.int32),
    "user_bio": np.zeros((1, 8), np.int32),
    "user_bio_length": np.zeros(1, np.int32),
    "user_taste": np.zeros((1, 3), np.float32),
    "user_city": np.zeros(1, np.int32),
}


@pytest.mark.parametrize("kind", ["two_tower-implicit", "ranker-explicit"])
def test_a_file_adapts_in_the_interpreter_as_the_live_learner_does(shops, make_learner, tmp_path, kind):
    model, feedback = kind.split("-")
    vocabulary = shops[feedback][1]
    learner = make_learner(vocabulary, {"two_tower": tmr.models.TwoTower, "ranker": tmr.models.Ranker}[model])
    written = lite_model(learner, tmp_path / "deep" / "shop.tflite", support=4, candidates=5)
    assert written.size_bytes == written.path.stat().st_size
    assert written.difference < 1e-4
    rows, asked = np.array([[1, 5, 7, 0]], np.int32), np.array([[2, 3, 0, 11, 12]], np.int32)
    inputs = {"support": rows, "candidates": asked, "support_labels": np.array([[5, 4, 1, 0]], np.float32), **NOBODY}
    found = {length: answer(written.path, **inputs, support_length=np.array([length], np.int32)) for length in (0, 3)}
    items = [{name: value[at] for name, value in vocabulary.catalogue.items()} for at in (rows, asked)]
    user = {name.removeprefix("user_"): value for name, value in NOBODY.items()}
    for length, scores in found.items():
        support = tmr.tasks.Support(
            {"user_id": np.zeros(1, np.int32), **user}, items[0], inputs["support_labels"], np.array([length], np.int32)
        )
        expected = learner.score(learner.adapt(support), items[1])
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found[0] - found[3]).max() > 1e-3


def test_half_the_bits_make_a_smaller_file(shops, tmp_path):
    model = tmr.models.TwoTower(shops["implicit"][1], 64, user_hidden=(64,))
    learner = tmr.meta.MAML(model, inner_steps=1)
    whole, half = (lite_model(learner, tmp_path / name, weights=name) for name in ("float32", "float16"))
    assert half.size_bytes < whole.size_bytes
    assert half.difference < 1e-2


def test_a_learner_that_needs_more_than_litert_has_is_refused_with_what_it_lacks(shops, tmp_path):
    learner = tmr.meta.Ridge(tmr.models.TwoTower(shops["implicit"][1], 4))
    with pytest.raises(GateError, match=r"LiteRT cannot hold a Ridge: it lacks .*Cholesky"):
        lite_model(learner, tmp_path / "shop.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": 0}, "`support` must be at least 1. Received: support=0"),
        ({"candidates": 0}, "`candidates` must be at least 1. Received: candidates=0"),
        ({"weights": "int8"}, "`weights` must be one of float32, float16. Received: weights='int8'"),
    ],
)
def test_options_out_of_range_are_refused(shops, make_learner, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        lite_model(make_learner(shops["implicit"][1]), tmp_path / "shop.tflite", **options)
