"""Texts -> vectors, by any sentence encoder; one that needs no network is built in."""

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.data import Interactions
from tfmetarec.data.errors import DataError, nearest_name
from tfmetarec.transfer.pretrained import ItemVectors, unit_length

TextEncoder = Callable[[list[str]], Any]
"""Takes `N` texts and returns `(N, D)` floats. An object with a method `encode` that does so is one as well."""


def text_vectors(
    texts: Sequence[str | None], encoder: TextEncoder | str = "wordllama", *, normalize: bool = True
) -> np.ndarray:
    """Returns a vector for every text, zeros for a text with nothing in it.

    Zeros are how an absent vector is written everywhere in this package, so "no text" stays "no text" whatever
    the encoder makes of an empty string. Each different text is encoded once.

    Args:
        texts: `N` strings; `None` counts as empty.
        encoder: a `TextEncoder`; or "wordllama", which comes with `pip install tfmetarec[pretrained]` and runs
            offline (`D` = 256, a mean over word pieces); or the place of an encoder as
            "module:object", such as "my_encoders:multilingual". Defaults to "wordllama".
        normalize: bool. Scale each vector to length 1, as cosines do. Defaults to `True`.

    Returns:
        `(N, D)` float32.

    Raises:
        ValueError: if no text has any words, or the encoder returns another shape or values that are not finite.
        ImportError: if the encoder, or the package behind it, is not installed.

    Example:
    >>> def vowels(texts):
    ...     return [[text.count(letter) for letter in "aeiou"] for text in texts]
    >>> text_vectors(["banana", "", "aioli"], vowels, normalize=False).tolist()
    [[3.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 1.0, 0.0]]
    """
    encode, name = _resolve(encoder)
    if isinstance(texts, str):
        raise ValueError(f"`texts` must be a list of strings, not one string. Received: texts={texts!r}")
    if wrong := [text for text in texts if not isinstance(text, str | None)]:
        raise ValueError(f"`texts` must hold strings or None. Received: {wrong[0]!r}")
    stripped = ["" if text is None else text.strip() for text in texts]
    different = list(dict.fromkeys(text for text in stripped if text))
    if not different:
        raise ValueError(f"`texts` must hold at least one text that is not empty. Received {len(stripped)} empty ones")
    encoded = _checked(encode(different), len(different), name)
    row = {text: place for place, text in enumerate(different, 1)} | {"": 0}
    table = np.concatenate([np.zeros_like(encoded[:1]), encoded])
    return (unit_length(table) if normalize else table)[[row[text] for text in stripped]]


def item_text_vectors(
    interactions: Interactions,
    features: str | Sequence[str],
    encoder: TextEncoder | str = "wordllama",
    *,
    normalize: bool = True,
) -> ItemVectors:
    """Returns the vector of every item's text; items without any text have none.

    Args:
        interactions: `Interactions` with item features.
        features: the item features that make up the text, in this order: words, categories or lists of them.
        encoder: see `text_vectors`.
        normalize: see `text_vectors`.

    Raises:
        DataError: if there are no item features, or none of this name.
        ValueError: see `text_vectors`.

    Example:
    >>> import polars as pl, tfmetarec as tmr
    >>> table = pl.DataFrame({"user_id": [1, 2], "item_id": [7, 8]})
    >>> items = pl.DataFrame({"item_id": [7, 8], "title": ["A tall tale", None], "tags": [["new"], []]})
    >>> shop = tmr.data.Interactions.from_frames(table, items=items, feedback="implicit", kinds={"title": "text"})
    >>> def lengths(texts):
    ...     return [[float(len(text))] for text in texts]
    >>> item_text_vectors(shop, ["title", "tags"], lengths, normalize=False)
    ItemVectors(1 items, width 1)
    """
    ids, texts = item_texts(interactions, features)
    return ItemVectors(ids, text_vectors(texts, encoder, normalize=normalize))


def item_texts(interactions: Interactions, features: str | Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Raw ids of all items with features, and the text that `features` make together.

    Raises:
        DataError: if there are no item features, or none of this name.
    """
    names = [features] if isinstance(features, str) else list(features)
    if interactions.items is None:
        raise DataError("`interactions` must have item features to make texts of, and have none.")
    known = [name for name in interactions.items.columns if name != "item_id"]
    if not names:
        raise DataError(f"`features` must name at least one item feature of {known}. Received: features=[]")
    for name in names:
        if name not in known:
            raise DataError(
                f"`features` must name item features{nearest_name(name, known)}. Received: {name!r}, features {known}"
            )
    kinds = {feature.name: feature.kind for feature in interactions.schema.item}
    if vectors := [name for name in names if kinds[name] == "vector"]:
        raise DataError(f"`features` must be words or numbers. Received: {vectors[0]!r}, which is a vector")
    columns = [_as_text(name, kinds[name]) for name in names]
    text = interactions.items.select(pl.concat_str(columns, separator=" ", ignore_nulls=True)).to_series()
    return interactions.items["item_id"].to_numpy(), text.fill_null("").to_list()


def _as_text(name: str, kind: str) -> pl.Expr:
    column = pl.col(name)
    return column.cast(pl.List(pl.String)).list.join(" ") if kind == "category_list" else column.cast(pl.String)


def _resolve(encoder: TextEncoder | str) -> tuple[TextEncoder, str]:
    """The function behind an encoder, and what to call it in messages."""
    name = encoder if isinstance(encoder, str) else getattr(encoder, "__name__", type(encoder).__name__)
    if encoder == "wordllama":
        return _word_llama(), name
    if isinstance(encoder, str):
        encoder = _imported(encoder)
    # Models of sentence-transformers can be called too, which means something else there.
    method = getattr(encoder, "encode", encoder)
    if isinstance(encoder, type | str) or not callable(method):
        raise ValueError(
            f"`encoder` must be a function of a list of texts, or an object with a method `encode`. Received: {name!r}"
        )
    return method, name


def _imported(path: str) -> Any:
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ValueError(
            "`encoder` must be a function, 'wordllama', or the place of an encoder as 'module:object'. "
            f"Received: encoder={path!r}"
        )
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"`encoder` is {path!r}, but {module!r} cannot be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ImportError(f"`encoder` is {path!r}, but {module!r} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def _checked(encoded: Any, count: int, name: str) -> np.ndarray:
    try:
        vectors = np.asarray(encoded, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`encoder` must return ({count}, D) floats for {count} texts. {name!r}: {error}") from error
    if vectors.ndim != 2 or len(vectors) != count or vectors.shape[1] == 0:
        raise ValueError(
            f"`encoder` must return ({count}, D) floats for {count} texts. Received from {name!r}: {vectors.shape}"
        )
    if not np.isfinite(vectors).all():
        raise ValueError(f"`encoder` must return finite numbers. Received NaN or infinity from {name!r}")
    return vectors


@functools.cache
def _word_llama() -> TextEncoder:
    # On import the package opens a log on the console for the whole process; that is not ours to allow.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        import wordllama
    except ImportError as error:
        raise ImportError(
            "the encoder 'wordllama' needs the package wordllama: pip install tfmetarec[pretrained]"
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    folder = Path(wordllama.__file__).parent
    # Weights come with the package, and the folder tells it that the tokenizer does too.
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    def encode(texts: list[str]) -> np.ndarray:
        # A batch is padded to its longest text: texts of like length waste least.
        order = np.argsort([len(text) for text in texts], kind="stable")
        vectors = np.empty((len(texts), model.embedding.shape[1]), np.float32)
        vectors[order] = model.embed([texts[place] for place in order])
        return vectors

    return encode
