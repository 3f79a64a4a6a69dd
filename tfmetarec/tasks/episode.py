"""What a learner sees of a task: the support it may adapt on and the query it is judged on.

Everything here is a nested dict or tuple of arrays (NumPy or TensorFlow alike), so that it flows through
`tf.data`, `tf.function` and `fit` unchanged. Letters for shapes, the same everywhere: `T` tasks, `S` support
rows, `Q` query rows, `N` candidates, `P` negatives.
"""

from typing import Any, NamedTuple

Features = dict[str, Any]
"""Encoded features by name: row numbers (int32) and numbers (float32), see `tfmetarec.data.Vocabulary`."""


class Support(NamedTuple):
    """The interactions that `T` tasks may adapt on (or, as a query, are judged on).

    A user's task has user features of shape `(T, ...)`, one set for all its rows, and item features of shape
    `(T, S, ...)`. A task about an item has them the other way round, and a task about a domain has both per
    row. Every model accepts all three. Rows at and past `length` are padding.

    Attributes:
        user: user features; `user["user_id"]` always exists and holds vocabulary rows, 0 = never seen.
        item: item features; `item["item_id"]` always exists and holds vocabulary rows, 0 = never seen.
        label: `(T, S)` float32. The rating; for implicit feedback 1.
        length: `(T,)` int32, at least 0, at most `S`.
    """

    user: Features
    item: Features
    label: Any
    length: Any


class Negatives(NamedTuple):
    """Items that implicit feedback is contrasted with: drawn at random, not known to be disliked.

    Attributes:
        item: features of `P` items shared by all tasks, `(P, ...)`, or of each task's own, `(T, P, ...)`.
        log_expected: `(P,)` or `(T, P)` float32: the logarithm of how often the sampler expected to draw this
            item, which a sampled softmax subtracts from its score to be unbiased for the full one.
        weight: `(T, P)` float32: 0 where the item is a positive of that task anywhere in its history, else 1.
    """

    item: Features
    log_expected: Any
    weight: Any


class Episode(NamedTuple):
    """`T` tasks with everything one meta-training step needs.

    The inner and the outer loss have negatives of their own: judging a task on the very items that adapting
    has just pushed down would reward memorising them.

    Attributes:
        support: what the tasks may adapt on.
        query: what they are judged on.
        support_negatives: `Negatives`, or an empty dict (which `tf.data` can carry, unlike `None`).
        query_negatives: the same for the query.
    """

    support: Support
    query: Support
    support_negatives: Any
    query_negatives: Any
