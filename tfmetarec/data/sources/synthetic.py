"""Made-up interactions with a known right answer: users prefer the items of their own group."""

from typing import NamedTuple

import numpy as np
import polars as pl

from tfmetarec.data.errors import DataError
from tfmetarec.data.interactions import Interactions
from tfmetarec.data.schema import check_feedback

_FIRST_TIME = 1_600_000_000
_DAY_S = 24 * 60 * 60


class Truth(NamedTuple):
    """The planted groups.

    Attributes:
        user_group: `(n_users,)` int64. `user_group[user_id]` is the group of a user.
        item_group: `(n_items,)` int64. `item_group[item_id]` is the group of an item.
        user_bias: `(n_users,)` float64 in [-0.5, 0.5), used by explicit feedback.
        item_bias: `(n_items,)` float64 in [-0.5, 0.5), used by explicit feedback.
    """

    user_group: np.ndarray
    item_group: np.ndarray
    user_bias: np.ndarray
    item_bias: np.ndarray


def load(
    n_users: int = 200,
    n_items: int = 100,
    n_groups: int = 4,
    interactions_per_user: int = 20,
    noise: float = 0.0,
    feedback: str = "implicit",
    seed: int = 0,
) -> Interactions:
    """Returns interactions whose structure is known, with ids from 0.

    Implicit: a user's items are drawn, without repeats, from its own group; each is of another group with
    probability `noise`. Explicit: a user's items are drawn from all, without repeats, and

        label = round(clip(3 + match + user_bias + item_bias, 1, 5))

    where `match` is 1 within the group and -1 outside, the other way round with probability `noise`. A user's
    times increase by about a day. The user feature `segment` is the group with probability 1 - noise, else
    any; the item features are `group`, `tags` (the group and a random letter) and `price` (10 higher per
    group).

    Args:
        n_users: int, at least 1.
        n_items: int, at least `n_groups`.
        n_groups: int, at least 1. Groups have the same size, give or take one.
        interactions_per_user: int, at least 1. Implicit: at most the smallest group of items and, where
            there is noise, at most the items outside the largest. Explicit: at most `n_items`.
        noise: float in [0, 1].
        feedback: str, `"implicit"` or `"explicit"`.
        seed: int, at least 0. Equal seeds give equal data.

    Raises:
        DataError: if an argument is out of range.

    Example:
    >>> made_up = load(n_users=5, n_items=8, n_groups=2, interactions_per_user=3)
    >>> planted = truth(n_users=5, n_items=8, n_groups=2)
    >>> user, item = made_up.table["user_id"].to_numpy(), made_up.table["item_id"].to_numpy()
    >>> bool((planted.user_group[user] == planted.item_group[item]).all())
    True
    """
    check_feedback(feedback)
    planted = truth(n_users, n_items, n_groups, seed)
    sizes = np.bincount(planted.item_group, minlength=n_groups)
    _check_noise(noise, n_groups, feedback)
    most = n_items if feedback == "explicit" else int(sizes.min())
    if feedback == "implicit" and noise > 0:
        most = min(most, n_items - int(sizes.max()))
    if not 1 <= interactions_per_user <= most:
        raise DataError(
            f"`interactions_per_user` must be between 1 and the {most} different items that a user can meet. "
            f"Received: interactions_per_user={interactions_per_user}"
        )
    rng = np.random.default_rng([seed, 1])
    k = interactions_per_user
    if feedback == "implicit":
        items = _implicit_items(rng, planted, sizes, k, noise)
        labels = np.ones((n_users, k), np.float32)
    else:
        items = _draw_distinct(rng, np.full(n_users, n_items), k)
        match = planted.user_group[:, None] == planted.item_group[items]
        match ^= rng.random((n_users, k)) < noise
        score = 3 + np.where(match, 1, -1) + planted.user_bias[:, None] + planted.item_bias[items]
        labels = np.rint(np.clip(score, 1, 5)).astype(np.float32)
    times = _FIRST_TIME + np.arange(k) * _DAY_S + rng.integers(0, _DAY_S, (n_users, k))
    table = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(n_users), k),
            "item_id": items.ravel(),
            "label": labels.ravel(),
            "timestamp": times.ravel(),
        }
    )
    return Interactions.from_frames(
        table,
        users=_users(rng, planted, n_groups, noise),
        items=_items(rng, planted),
        feedback=feedback,
        name="synthetic",
    )


def truth(n_users: int = 200, n_items: int = 100, n_groups: int = 4, seed: int = 0) -> Truth:
    """Returns the groups and biases that `load` plants for the same arguments.

    Raises:
        DataError: if an argument is out of range.
    """
    for name, value, least in (("n_users", n_users, 1), ("n_groups", n_groups, 1), ("seed", seed, 0)):
        if value < least:
            raise DataError(f"`{name}` must be at least {least}. Received: {name}={value}")
    if n_items < n_groups:
        raise DataError(f"`n_items` must be at least `n_groups`. Received: n_items={n_items}, n_groups={n_groups}")
    rng = np.random.default_rng([seed, 0])
    return Truth(
        user_group=rng.permutation(np.arange(n_users) % n_groups),
        item_group=rng.permutation(np.arange(n_items) % n_groups),
        user_bias=rng.random(n_users) - 0.5,
        item_bias=rng.random(n_items) - 0.5,
    )


def _check_noise(noise: float, n_groups: int, feedback: str) -> None:
    if not 0 <= noise <= 1:
        raise DataError(f"`noise` must be between 0 and 1. Received: noise={noise}")
    if feedback == "implicit" and noise > 0 and n_groups == 1:
        raise DataError(f"`noise` must be 0 where one group has all items. Received: noise={noise}, n_groups=1")


def _implicit_items(rng: np.random.Generator, planted: Truth, sizes: np.ndarray, k: int, noise: float) -> np.ndarray:
    """Draws `(n_users, k)` items without repeats, each outside the user's group with probability `noise`."""
    # In this order a group's items stand together, and those of the other groups follow it, round the end.
    by_group = np.argsort(planted.item_group, kind="stable")
    first = (np.cumsum(sizes) - sizes)[planted.user_group]  # (U,)
    size = sizes[planted.user_group]  # (U,)
    places = _draw_distinct(rng, size, k)
    if noise > 0:
        outside = size[:, None] + _draw_distinct(rng, len(by_group) - size, k)
        places = np.where(rng.random(places.shape) < noise, outside, places)
    return by_group[(first[:, None] + places) % len(by_group)]


def _draw_distinct(rng: np.random.Generator, sizes: np.ndarray, k: int) -> np.ndarray:
    """Draws `(U, k)` numbers, row u without repeats and evenly from `range(sizes[u])`.

    Floyd's algorithm (Bentley, 1987) for all rows at once: k draws, where a shuffle needs `max(sizes)`.
    """
    drawn = np.empty((len(sizes), k), np.int64)
    for step in range(k):
        last = sizes - k + step
        number = rng.integers(0, last + 1)
        seen = (drawn[:, :step] == number[:, None]).any(axis=1)
        drawn[:, step] = np.where(seen, last, number)
    return rng.permuted(drawn, axis=1)  # Floyd's order is not random: large numbers come late.


def _users(rng: np.random.Generator, planted: Truth, n_groups: int, noise: float) -> pl.DataFrame:
    n_users = len(planted.user_group)
    known = rng.random(n_users) >= noise
    segment = np.where(known, planted.user_group, rng.integers(0, n_groups, n_users))
    return pl.DataFrame({"user_id": np.arange(n_users), "segment": segment}).with_columns(
        pl.format("segment-{}", "segment").alias("segment")
    )


def _items(rng: np.random.Generator, planted: Truth) -> pl.DataFrame:
    n_items = len(planted.item_group)
    frame = pl.DataFrame(
        {
            "item_id": np.arange(n_items),
            "group": planted.item_group,
            "letter": rng.choice(list("abcdefgh"), n_items),
            "price": np.round(10 * (planted.item_group + 1) + rng.random(n_items) * 5, 2),
        }
    )
    group = pl.format("group-{}", "group")
    return frame.select("item_id", group=group, tags=pl.concat_list(group, "letter"), price="price")
