"""Requests made up from a vocabulary: what the gate compares on, and what warms a server up."""

from typing import Any

import numpy as np

from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.export.signatures import ServedLearner

Request = dict[str, np.ndarray]


def example_request(
    served: ServedLearner, signature: str, *, batch: int, support: int, candidates: int, seed: int
) -> Request:
    """A request of `batch` rows as raw arrays: known and unknown ids, full and empty lists.

    Args:
        served: what is exported.
        signature: name of one of its signatures.
        batch: int, at least 1.
        support: int, at least 1. Width of the support; its lengths run from full to 0.
        candidates: int, at least 1. Also the number of new items.
        seed: int.
    """
    rng = np.random.default_rng([seed, batch, support])
    vocabulary = served.vocabulary
    low, high = vocabulary.label_range
    # With implicit feedback a row says that the item was chosen, whatever the data counted.
    rated = vocabulary.specs.feedback == "explicit"
    labels = rng.uniform(low, high, (batch, support)) if rated else np.ones((batch, support))
    labels[:, 1:2] = 0.0  # For implicit feedback a row that says nothing.
    row = np.arange(batch)
    values: Request = {
        "items": _ids(vocabulary, (batch,), rng),
        "candidates": _ids(vocabulary, (batch, candidates), rng),
        "support": _ids(vocabulary, (batch, support), rng),
        "support_labels": labels.astype(np.float32),
        "support_length": np.maximum(support - row * support // 2, 0).astype(np.int32),
        "exclude": _ids(vocabulary, (batch, 3), rng),
        "exclude_length": (3 - row % 4).astype(np.int32),
        "top_k": (1 + (served.top_k - 1 + row) % served.top_k).astype(np.int32),
        "state": served.state.example(batch),
    }
    for name, wire in served.filters.items():
        values[wire] = _known(vocabulary, "item", name, (batch, 2), rng)
        values[wire][row % 2 == 0] = ""  # Every other user asks for nothing in particular.
    for side, inputs, shape in (
        ("user", served.user_inputs, (batch,)),
        ("item", served.item_inputs, (batch, candidates)),
    ):
        for name, wire in inputs.items():
            values[wire] = _raw(vocabulary, side, name, shape, rng)
    return {name: values[name] for name in served.inputs[signature]}


def _ids(vocabulary: Vocabulary, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    ids = vocabulary.item_ids[rng.integers(1, vocabulary.n_items, shape)]
    ids.reshape(-1)[-1] = -1 if ids.dtype.kind == "i" else "no such item"
    return ids if ids.dtype.kind == "i" else ids.astype(str)


def _raw(vocabulary: Vocabulary, side: str, name: str, leading: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Raw values of one input of a side."""
    spec = vocabulary.raw_signature(side)[name]
    if spec.dtype.is_integer and name.endswith("_length"):  # Of a list, which has three entries here.
        return rng.integers(0, 4, leading).astype(np.int32)
    shape = (*leading, *[3 if size is None else size for size in spec.shape[1:]])
    if spec.dtype.is_floating:
        return rng.normal(size=shape).astype(spec.dtype.as_numpy_dtype)
    return _known(vocabulary, side, name, shape, rng)


def _known(vocabulary: Vocabulary, side: str, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Values that a feature had in training, and at the end one never seen."""
    known = vocabulary.known_values(side, name)
    if known is None or not len(known):
        return np.full(shape, "never seen")
    values = known[rng.integers(0, len(known), shape)]
    values.reshape(-1)[-1] = -1 if values.dtype.kind == "i" else "never seen"
    return values if values.dtype.kind == "i" else values.astype(str)
