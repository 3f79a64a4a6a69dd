import logging
import sys

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data.errors import DataError
from tfmetarec.transfer.text_vectors import item_text_vectors, item_texts, text_vectors


def letters(texts):
    return [[text.count(letter) for letter in "ab"] for text in texts]


class Sentences:
    """Like a model of sentence-transformers: it can be called, which is not how it encodes."""

    def __call__(self, features):
        raise AssertionError("wants tensors")

    def encode(self, texts):
        return np.array(letters(texts), np.float64)


def films():
    table = pl.DataFrame({"user_id": [1, 2], "item_id": [7, 8]})
    items = pl.DataFrame(
        {
            "item_id": [7, 8, 9],
            "title": ["ab", "  ", None],
            "tags": [["aa", "b"], [], []],
            "year": [1999, 2000, None],
            "look": [[1.0], [2.0], [3.0]],
        }
    )
    kinds = {"title": "text", "year": "category"}
    return tmr.data.Interactions.from_frames(table, items=items, feedback="implicit", kinds=kinds)


@pytest.mark.parametrize(
    "encoder", [letters, Sentences(), "tests.transfer.encoders:letters"], ids=["f", "object", "path"]
)
def test_any_encoder_will_do(encoder, monkeypatch):
    module = type(sys)("tests.transfer.encoders")
    module.letters = letters
    monkeypatch.setitem(sys.modules, "tests.transfer.encoders", module)
    found = text_vectors(["abb", "", None, " \n", "a"], encoder, normalize=False)
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]


def test_vectors_have_length_one_unless_told_otherwise():
    np.testing.assert_allclose(text_vectors(["aaabbbb"], letters), [[0.6, 0.8]], rtol=1e-6)


def test_a_text_is_encoded_once_and_an_empty_one_never():
    asked = []
    text_vectors(["ab", "", "b", " ab "], lambda texts: asked.extend(texts) or letters(texts))
    assert asked == ["ab", "b"]


@pytest.mark.parametrize(
    ("texts", "encoder", "error", "message"),
    [
        ("ab", letters, ValueError, "must be a list of strings, not one string"),
        (["a", 3], letters, ValueError, "must hold strings or None. Received: 3"),
        (["", None], letters, ValueError, "at least one text that is not empty. Received 2 empty ones"),
        (["a", "b"], lambda texts: np.ones((3, 4)), ValueError, r"must return \(2, D\) floats for 2 texts. Received from '<lambda>': \(3, 4\)"),
        (["a", "b"], lambda texts: np.ones(2), ValueError, r"must return \(2, D\) floats for 2 texts. Received .*: \(2,\)"),
        (["a", "b"], lambda texts: [[1.0], [1.0, 2.0]], ValueError, r"must return \(2, D\) floats for 2 texts"),
        (["a"], lambda texts: [[np.nan]], ValueError, "must return finite numbers. Received NaN or infinity"),
        (["a"], Sentences, ValueError, "`encoder` must be a function of a list of texts, .* Received: 'Sentences'"),
        (["a"], "no colon", ValueError, "as 'module:object'. Received: encoder='no colon'"),
        (["a"], "no_such_module:encode", ImportError, "'no_such_module' cannot be imported: No module named"),
        (["a"], "math:encode", ImportError, "'math' has no 'encode'"),
        (["a"], "math:pi", ValueError, "`encoder` must be a function of a list of texts, .* Received: 'math:pi'"),
    ],
)  # fmt: skip
def test_encoders_and_texts_that_cannot_be_used_are_refused(texts, encoder, error, message):
    with pytest.raises(error, match=message):
        text_vectors(texts, encoder)


def test_the_text_of_an_item_is_its_features_in_the_order_asked_for():
    ids, texts = item_texts(films(), ["year", "tags", "title"])
    assert ids.tolist() == [7, 8, 9]
    assert [text.split() for text in texts] == [["1999", "aa", "b", "ab"], ["2000"], []]


def test_items_without_text_have_no_vector():
    vectors = item_text_vectors(films(), ["title", "tags"], letters, normalize=False)
    assert vectors.item_ids.tolist() == [7]
    assert vectors.of([7, 8]).tolist() == [[3.0, 2.0], [0.0, 0.0]]
    assert item_text_vectors(films(), "title", letters).width == 2


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("titel", "must name item features; the nearest name is 'title'. Received: 'titel'"),
        ([], "must name at least one item feature of"),
        (["look"], "must be words or numbers. Received: 'look', which is a vector"),
    ],
)
def test_features_that_make_no_text_are_refused(features, message):
    with pytest.raises(DataError, match=message):
        item_texts(films(), features)


def test_a_catalogue_without_features_has_no_texts():
    table = pl.DataFrame({"user_id": [1], "item_id": [7]})
    with pytest.raises(DataError, match="must have item features to make texts of, and have none"):
        item_texts(tmr.data.Interactions.from_frames(table, feedback="implicit"), "title")


def test_a_missing_package_says_what_to_install(monkeypatch):
    from tfmetarec.transfer.text_vectors import _word_llama

    _word_llama.cache_clear()
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ImportError, match=r"needs the package wordllama: pip install tfmetarec\[pretrained\]"):
        text_vectors(["a"])
    _word_llama.cache_clear()


def test_the_built_in_encoder_needs_no_network_and_knows_what_words_mean(monkeypatch):
    pytest.importorskip("wordllama", reason="needs the extra `pretrained`")
    import requests

    def refused(*args, **kwargs):
        raise AssertionError("asked the network")

    monkeypatch.setattr(requests, "get", refused)
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    found = text_vectors(["red wine", "white wine", "a stock market crash", "", "red wine " + 300 * "and more "])
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert found.shape == (5, 256)
    assert not found[3].any()
    similar = found @ found.T
    assert similar[0, 1] > similar[0, 2]
    # What a text shares a batch with changes nothing.
    np.testing.assert_allclose(text_vectors(["red wine"])[0], found[0], atol=1e-6)
