"""Word2Vec: items as the words of users' sequences, and item texts as the means of their words."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.data import Interactions
from tfmetarec.data.errors import DataError, first_line
from tfmetarec.transfer.pretrained import ItemVectors

_WORD = re.compile(r"[^\W_]+")
_LONGEST = 10_000  # Words of one sentence that gensim takes; it leaves out the rest.


def item2vec(
    interactions: Interactions,
    width: int = 64,
    *,
    window: int = 5,
    epochs: int = 10,
    negatives: int = 5,
    min_count: int = 2,
    seed: int = 0,
) -> ItemVectors:
    """Returns vectors of items that are alike where the items before and after them are alike.

    Skip-gram with negative sampling (gensim's Word2Vec) over the items of each user in order of time. Pass the training
    part of a split, as to `Vocabulary.fit`: what other users did must not be known. One thread, since several would
    make two runs differ.

    Args:
        interactions: `Interactions`, the training part.
        width: int, at least 1. `D`. Defaults to 64.
        window: int, at least 1. How many items before and after count as its company. Defaults to 5.
        epochs: int, at least 1. Defaults to 10.
        negatives: int, at least 1. Random items that each pair is contrasted with. Defaults to 5.
        min_count: int, at least 1. Items that were met less often have no vector. Defaults to 2.
        seed: int, at least 0. Equal seeds give equal vectors, in every process.

    Raises:
        ValueError: for an option out of range, or if no item was met `min_count` times.
        TypeError: if `interactions` is a whole split.
        ImportError: without gensim.

    Example:
    >>> import tfmetarec as tmr
    >>> split = tmr.data.cold_users(tmr.data.load("synthetic", n_users=50, seed=0))
    >>> item2vec(split.train, width=8, epochs=1)
    ItemVectors(100 items, width 8)

    Reference: [Barkan and Koenigstein, 2016](https://arxiv.org/abs/1603.04259)
    """
    if not isinstance(interactions, Interactions):
        raise TypeError(
            "`interactions` must be `Interactions`, such as the part `train` of a split. "
            f"Received: {type(interactions).__name__}"
        )
    # Words of gensim are strings, so an item is written as the number of its id in order.
    ids = interactions.table["item_id"].unique().sort()
    rows = interactions.table.select("user_id", row=(pl.col("item_id").rank("dense") - 1).cast(pl.String))
    sequences = rows.group_by("user_id", maintain_order=True).agg("row")["row"].to_list()
    words, vectors = _word2vec(
        sequences,
        width=width,
        window=window,
        epochs=epochs,
        negatives=negatives,
        min_count=min_count,
        seed=seed,
        sample=0.0,  # A user counts once for an item, so none is everywhere; of a small catalogue little would be left.
    )
    return ItemVectors(ids.gather([int(word) for word in words]).to_numpy(), vectors)


class WordVectors:
    """Encodes texts as the weighted mean of their words' vectors: a `TextEncoder` that is fitted on your own texts.

    The weights are SIF, a / (a + share of the word among all words) with a = 0.001, so that words found everywhere
    hardly count; the direction that all texts have in common is taken out. Both are folded into the words' vectors, so
    that a text's vector is the plain mean over its known words. A text without any known word gets zeros.

    Args:
        words: `V` different words, in lower case.
        vectors: `(V, D)` floats.

    Raises:
        ValueError: if the two differ in length or a word is there twice.

    Example:
    >>> encoder = WordVectors(["red", "wine"], [[1.0, 0.0], [0.0, 3.0]])
    >>> encoder(["Red wine!", "beer"]).tolist()
    [[0.5, 1.5], [0.0, 0.0]]

    Reference: [Arora et al., 2017](https://openreview.net/forum?id=SyK00v5xx)
    """

    def __init__(self, words: Sequence[str], vectors: Any):
        self.words, self.vectors = list(words), np.asarray(vectors, np.float32)
        if self.vectors.ndim != 2 or len(self.words) != len(self.vectors):
            raise ValueError(
                "`words` and `vectors` must be as many. "
                f"Received: {len(self.words)} words, vectors of shape {self.vectors.shape}"
            )
        self._row = {word: row for row, word in enumerate(self.words)}
        if len(self._row) < len(self.words):
            raise ValueError(
                f"`words` must hold each word once. Received {len(self.words)} words, {len(self._row)} different"
            )

    @classmethod
    def fit(
        cls,
        texts: Sequence[str | None],
        width: int = 64,
        *,
        window: int = 5,
        epochs: int = 20,
        negatives: int = 5,
        min_count: int = 2,
        seed: int = 0,
    ) -> "WordVectors":
        """Learns the words' vectors from texts, such as those of a catalogue: see `item_texts`.

        Args:
            texts: strings; `None` counts as empty.
            width: int, at least 1. Of the vectors.
            window: int, at least 1. How far apart two words of a text may be to count as neighbours.
            epochs: int, at least 1.
            negatives: int, at least 1. Words that each pair is contrasted with.
            min_count: int, at least 1. Rarer words get no vector.
            seed: int, at least 0.

        Raises:
            ValueError: for an option out of range, or if no word is found `min_count` times.
            ImportError: without gensim.
        """
        sentences = [words for text in texts if (words := _words(text))]
        found, vectors = _word2vec(
            sentences,
            width=width,
            window=window,
            epochs=epochs,
            negatives=negatives,
            min_count=min_count,
            seed=seed,
            sample=1e-3,
        )
        counts = dict.fromkeys(found, 0)
        for word in (word for sentence in sentences for word in sentence if word in counts):
            counts[word] += 1
        share = np.array([counts[word] for word in found]) / sum(counts.values())
        plain = cls(found, vectors * (1e-3 / (1e-3 + share))[:, None])
        encoded = plain(list(dict.fromkeys(" ".join(sentence) for sentence in sentences)))
        if len(encoded) < 2:
            return plain
        # Without centring, as in the paper: the mean itself is most of what all texts share.
        common = np.linalg.svd(encoded.astype(np.float64), full_matrices=False)[2][0].astype(np.float32)
        return cls(found, plain.vectors - np.outer(plain.vectors @ common, common))

    def __call__(self, texts: Sequence[str | None]) -> np.ndarray:
        """Vectors `(N, D)` of `N` texts."""
        sentences = [[row for word in _words(text) if (row := self._row.get(word)) is not None] for text in texts]
        counts = np.array([len(sentence) for sentence in sentences], np.int64)
        rows = np.fromiter((row for sentence in sentences for row in sentence), np.int64, int(counts.sum()))
        sums = np.zeros((len(sentences), self.vectors.shape[1]), np.float32)
        np.add.at(sums, np.repeat(np.arange(len(sentences)), counts), self.vectors[rows])
        return sums / np.maximum(counts, 1)[:, None].astype(np.float32)

    def save(self, file: str | Path) -> None:
        """Writes a Parquet file with the columns `word` and `vector`."""
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        array = pl.Array(pl.Float32, self.vectors.shape[1])
        pl.DataFrame([pl.Series("word", self.words), pl.Series("vector", self.vectors, array)]).write_parquet(file)

    @classmethod
    def load(cls, file: str | Path) -> "WordVectors":
        """Reads what `save` wrote.

        Raises:
            DataError: if the file cannot be read.
        """
        try:
            frame = pl.read_parquet(file, columns=["word", "vector"], glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
        return cls(frame["word"].to_list(), frame["vector"].to_numpy())

    def __repr__(self) -> str:
        return f"WordVectors({len(self.words):,} words, width {self.vectors.shape[1]})"


def _words(text: str | None) -> list[str]:
    return _WORD.findall(text.lower()) if text else []


def _word2vec(
    sentences: list[list[str]],
    *,
    width: int,
    window: int,
    epochs: int,
    negatives: int,
    min_count: int,
    seed: int,
    sample: float,
) -> tuple[list[str], np.ndarray]:
    """Words that occur `min_count` times, and their vectors."""
    options = {"width": width, "window": window, "epochs": epochs, "negatives": negatives, "min_count": min_count}
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be at least 0 and less than 2^32. Received: seed={seed}")
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise ImportError("Word2Vec needs the package gensim: pip install tfmetarec[pretrained]") from error
    model = Word2Vec(
        vector_size=width,
        window=window,
        sg=1,
        negative=negatives,
        min_count=min_count,
        seed=seed,
        sample=sample,
        workers=1,  # Several threads update the same vectors in the order in which they come.
        hashfxn=_hash,
    )
    sentences = [s[start : start + _LONGEST] for s in sentences for start in range(0, len(s), _LONGEST)]
    model.build_vocab(sentences)
    if not model.wv.index_to_key:
        raise ValueError(
            f"nothing occurs `min_count` times. Received: min_count={min_count}, {len(sentences)} sequences"
        )
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    return model.wv.index_to_key, model.wv.vectors


def _hash(word: str) -> int:
    """Python's own differs from one process to the next."""
    return zlib.crc32(word.encode())
