"""Requests made up from a vocabulary: what the gate compares on, and what warms a server up."""

import re
from typing import Any

import numpy as np

from tfmetarec.data.vocabulary import Vocabulary

Request = dict[str, np.ndarray]


def user_input(name: str) -> str:
    """The name of a user feature in a request: `user_` in front, and what TensorFlow cannot name as `_`.

    >>> user_input("Household Size")
    'user_Household_Size'
    """
    return "user_" + re.sub(r"[^A-Za-z0-9_]", "_", name)


def example_request(
    vocabulary: Vocabulary, signature: str, *, batch: int, support: int, candidates: int, seed: int
) -> Request:
    """A request of `batch` rows as raw arrays: known and unknown ids, full and empty supports.

    Args:
        vocabulary: of the learner that is exported.
        signature: name of one of its signatures.
        batch: int, at least 1.
        support: int, at least 1. Width of the support; its lengths run from full to 0.
        candidates: int, at least 1.
        seed: int.
    """
    rng = np.random.default_rng([seed, batch, support])

    def items(*shape: int) -> np.ndarray:
        ids = vocabulary.item_ids[rng.integers(1, vocabulary.n_items, shape)]
        ids.reshape(-1)[-1] = -1 if ids.dtype.kind == "i" else "no such item"
        return ids if ids.dtype.kind == "i" else ids.astype(str)

    if signature == "embed_items":
        return {"items": items(batch)}
    request: Request = {}
    if signature != "serving_default":
        low, high = vocabulary.label_range
        # With implicit feedback a row says that the item was chosen, whatever the data counted.
        rated = vocabulary.specs.feedback == "explicit"
        labels = rng.uniform(low, high, (batch, support)) if rated else np.ones((batch, support))
        request["support"] = items(batch, support)
        labels[:, 1:2] = 0.0  # For implicit feedback a row that says nothing.
        request["support_labels"] = labels.astype(np.float32)
        request["support_length"] = np.maximum(support - np.arange(batch) * support // 2, 0).astype(np.int32)
    if signature != "adapt_and_recommend":
        request["candidates"] = items(batch, candidates)
    for name, value in _raw_users(vocabulary, batch, rng).items():
        request[user_input(name)] = value
    return request


def _raw_users(vocabulary: Vocabulary, batch: int, rng: np.random.Generator) -> dict[str, Any]:
    users: dict[str, Any] = {}
    for name, spec in vocabulary.raw_signature("user").items():
        if name.endswith("_length") and name.removesuffix("_length") in users:
            width = users[name.removesuffix("_length")].shape[1]
            users[name] = rng.integers(0, width + 1, batch).astype(np.int32)
            continue
        known = vocabulary.known_values("user", name)
        shape = (batch, 3) if spec.shape.rank == 2 and spec.dtype.name == "string" else (batch, *spec.shape[1:])
        if known is not None and len(known):
            values = known[rng.integers(0, len(known), shape)]
            values.reshape(-1)[-1] = -1 if values.dtype.kind == "i" else "never seen"
            users[name] = values if values.dtype.kind == "i" else values.astype(str)
        elif spec.dtype.name == "string":
            users[name] = np.full(shape, "never seen")
        else:
            users[name] = rng.normal(size=shape).astype(spec.dtype.as_numpy_dtype)
    return users
