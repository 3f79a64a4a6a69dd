import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data.errors import DataError
from tfmetarec.data.sources.synthetic import truth
from tfmetarec.transfer.item2vec import WordVectors, item2vec
from tfmetarec.transfer.text_vectors import text_vectors

pytest.importorskip("gensim", reason="needs the extra `pretrained`")

SIZES = {"n_users": 150, "n_items": 40, "seed": 0}
PRINTED = """
import tfmetarec as tmr
from tfmetarec.transfer.item2vec import WordVectors, item2vec
data = tmr.data.load("synthetic", n_users=150, n_items=40, interactions_per_user=8, seed=0)
vectors = item2vec(data, 8, epochs=2, seed=3).vectors
words = WordVectors.fit(["red wine", "white wine", "red ink", "white paper"], 4, min_count=1, seed=3).vectors
print(vectors.tobytes().hex(), words.tobytes().hex())
"""


@pytest.fixture(scope="module")
def data():
    return tmr.data.load("synthetic", interactions_per_user=8, **SIZES)


def test_items_that_the_same_users_choose_lie_in_the_same_direction(data):
    vectors = item2vec(data, 8, epochs=20).normalized()
    group = truth(**SIZES).item_group[vectors.item_ids]
    cosine = vectors.vectors @ vectors.vectors.T
    np.fill_diagonal(cosine, -2)
    assert (group[cosine.argmax(axis=1)] == group).all()


def test_what_other_users_did_is_not_known(data):
    split = tmr.data.cold_users(data, test_share=0.3, seed=0)
    # An item that only a test user met, and another order of everything that test users did.
    strange = split.test.table.reverse().with_columns(timestamp=pl.Series(np.arange(len(split.test))))
    strange = strange.with_columns(item_id=pl.when(pl.int_range(pl.len()) == 0).then(99).otherwise("item_id"))
    both = data.with_table(pl.concat([split.train.table, strange]))
    train = both.filter(pl.col("user_id").is_in(split.train.table["user_id"].unique().implode()))
    vectors, expected = item2vec(train, 4, epochs=1), item2vec(split.train, 4, epochs=1)
    assert not vectors.has([99])[0]
    np.testing.assert_array_equal(vectors.vectors, expected.vectors)
    assert not np.array_equal(item2vec(both, 4, epochs=1, min_count=1).of([0, 1]), expected.of([0, 1]))
    with pytest.raises(TypeError, match="such as the part `train` of a split. Received: Split"):
        item2vec(split)


def test_rare_items_have_no_vector():
    table = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": ["ä", "b", "ä", "c"]})
    vectors = item2vec(tmr.data.Interactions.from_frames(table, feedback="implicit"), 3, min_count=2)
    assert vectors.item_ids.tolist() == ["ä"]
    assert vectors.width == 3


def test_items_are_read_in_order_of_time_however_the_rows_come():
    users = 200
    order = np.tile([5, 6, 1, 2], users)
    table = pl.DataFrame({"user_id": np.repeat(np.arange(users), 4), "item_id": order})
    table = table.with_columns(timestamp=pl.Series(np.arange(4 * users)))
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    one, other = (
        item2vec(tmr.data.Interactions.from_frames(t, feedback="implicit"), 4, window=1) for t in (table, shuffled)
    )
    np.testing.assert_array_equal(one.vectors, other.vectors)


def test_equal_seeds_give_equal_vectors_and_others_different_ones(data):
    one, same, other = (item2vec(data, 4, epochs=1, seed=seed).vectors for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_hash_of_words_does_not_change_with_the_process():
    from tfmetarec.transfer.item2vec import _hash

    assert _hash("a") == 0xE8B7BE43


@pytest.mark.slow
def test_two_processes_that_hash_differently_find_equal_vectors():
    found = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "TF_CPP_MIN_LOG_LEVEL": "3"}
        ran = subprocess.run([sys.executable, "-c", PRINTED], capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        found.append(ran.stdout)
    assert len(found[0]) > 2 * 4 * 40 * 8
    assert found[0] == found[1]


def test_a_text_is_the_mean_of_its_known_words_whatever_their_case():
    encoder = WordVectors(["red", "wine", "été"], [[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]])
    found = encoder(["Wine, RED wine?", "ink", "", None, "ÉTÉ_red"])
    np.testing.assert_allclose(found, [[1 / 3, 2.0], [0, 0], [0, 0], [0, 0], [3.0, 2.5]], rtol=1e-6)
    assert encoder([]).shape == (0, 2)


def test_words_found_everywhere_weigh_least_and_what_all_texts_share_is_gone():
    rng = np.random.default_rng(0)
    words = np.array([f"w{n}" for n in range(30)])
    texts = ["the " + " ".join(rng.choice(words, 5, replace=False)) for _ in range(200)]
    encoder = WordVectors.fit(texts, 6, epochs=3, min_count=1, seed=0)
    # Worked out again from the plain vectors: share 1/6 of all words is "the", so its weight is about 0.006.
    from gensim.models import Word2Vec

    from tfmetarec.transfer.item2vec import _hash

    sentences = [text.split() for text in texts]
    plain = Word2Vec(
        sentences, vector_size=6, sg=1, negative=5, min_count=1, seed=0, workers=1, epochs=3, hashfxn=_hash
    ).wv
    counts = {word: sum(word in sentence for sentence in sentences) for word in plain.index_to_key}
    weight = {word: 1e-3 / (1e-3 + count / sum(counts.values())) for word, count in counts.items()}
    assert weight["the"] == pytest.approx(1e-3 / (1e-3 + 1 / 6))
    raw = np.array(
        [np.mean([weight[word] * plain[word] for word in s], axis=0) for s in dict.fromkeys(map(tuple, sentences))]
    )
    common = np.linalg.svd(raw)[2][0]
    np.testing.assert_allclose(
        encoder([" ".join(s) for s in dict.fromkeys(map(tuple, sentences))]),
        raw - np.outer(raw @ common, common),
        atol=1e-5,
    )
    assert np.abs(encoder(texts) @ common).max() < 1e-5


def test_fitted_words_come_back_from_a_file(tmp_path):
    encoder = WordVectors.fit(["red wine", "white wine", "red ink"], 4, min_count=1)
    encoder.save(tmp_path / "deep" / "words.parquet")
    again = WordVectors.load(tmp_path / "deep" / "words.parquet")
    np.testing.assert_array_equal(again(["red", "new wine"]), encoder(["red", "new wine"]))
    with pytest.raises(DataError, match="cannot be read"):
        WordVectors.load(tmp_path / "nothing.parquet")


def test_fitted_words_are_an_encoder_of_texts():
    encoder = WordVectors(["red", "wine"], [[2.0, 0.0], [0.0, 3.0]])
    found = text_vectors(["red", "", "ink", "wine"], encoder)
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("option", ["width", "window", "epochs", "negatives", "min_count"])
def test_options_out_of_range_are_refused(option, data):
    with pytest.raises(ValueError, match=f"`{option}` must be at least 1. Received: {option}=0"):
        item2vec(data, **{option: 0})


def test_what_leaves_nothing_to_learn_from_is_refused(data):
    with pytest.raises(ValueError, match="`seed` must be at least 0 and less than 2.32. Received: seed=-1"):
        item2vec(data, seed=-1)
    with pytest.raises(ValueError, match="nothing occurs `min_count` times. Received: min_count=1000, 150 sequences"):
        item2vec(data, min_count=1000)
    with pytest.raises(ValueError, match="nothing occurs `min_count` times. Received: min_count=2, 0 sequences"):
        WordVectors.fit(["", None])
    with pytest.raises(ValueError, match=r"Received: 2 words, vectors of shape \(1, 1\)"):
        WordVectors(["a", "b"], [[1.0]])
    with pytest.raises(ValueError, match="must hold each word once. Received 2 words, 1 different"):
        WordVectors(["a", "a"], [[1.0], [2.0]])


def test_a_missing_package_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(ImportError, match=r"needs the package gensim: pip install tfmetarec\[pretrained\]"):
        item2vec(data)
