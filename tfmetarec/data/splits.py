"""Parts of the data that learners train on, choose on and are judged on, with nothing lost without a word."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.data.errors import DataError, nearest_name
from tfmetarec.data.interactions import Interactions

PUBLISHED_STATES = {
    "meta_training": "train",
    "warm_up": "warm",
    "user_cold_testing": "user_cold",
    "item_cold_testing": "item_cold",
    "user_and_item_cold_testing": "both_cold",
}
"""The names of the published MovieLens states, and of our parts."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Named parts of one set of interactions; no row is in two of them.

    Attributes:
        parts: dict from name to `Interactions`; `split["user_cold"]` and `split.train` read from it.
        seed: int that drew the parts, or `None` where nothing was drawn.
        notes: tuple of str, a sentence for each thing set aside or worth knowing.

    Example:
    >>> table = pl.DataFrame({"user_id": [1, 2, 3, 4], "item_id": [7, 7, 8, 8]})
    >>> split = cold_users(Interactions.from_frames(table, feedback="implicit"), test_share=0.25,
    ...                    validation_share=0.25)
    >>> len(split.train), len(split["test"])
    (2, 1)
    """

    parts: Mapping[str, Interactions]
    seed: int | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Interactions:
        if name not in self.parts:
            raise DataError(
                f"`name` must be one of the parts {', '.join(self.parts)}{nearest_name(name, self.parts)}. "
                f"Received: name={name!r}"
            )
        return self.parts[name]

    @property
    def train(self) -> Interactions:
        """What learners train on."""
        return self._part("train")

    @property
    def validation(self) -> Interactions:
        """What settings are chosen on."""
        return self._part("validation")

    @property
    def test(self) -> Interactions:
        """What is reported."""
        return self._part("test")

    @property
    def counts(self) -> pl.DataFrame:
        """One row per part: `part`, `users`, `items`, `rows`."""
        return pl.DataFrame(
            [(name, part.n_users, part.n_items, len(part)) for name, part in self.parts.items()],
            schema=["part", "users", "items", "rows"],
            orient="row",
        )

    def __repr__(self) -> str:
        lines = [f"Split(seed={self.seed})"]
        lines += [
            f"  {name}: {len(part):,} rows, {part.n_users:,} users, {part.n_items:,} items"
            for name, part in self.parts.items()
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def _part(self, name: str) -> Interactions:
        if name not in self.parts:  # `AttributeError`, so that `hasattr` and `getattr` do what they should.
            raise AttributeError(f"This split has no part {name!r}; its parts are {', '.join(self.parts)}")
        return self.parts[name]


def cold_users(
    interactions: Interactions,
    *,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    min_interactions: int = 1,
    seed: int = 0,
) -> Split:
    """Holds out whole users: what a learner meets in `validation` and `test`, it has never seen.

    Of `numpy.random.default_rng(seed).permutation(sorted ids)`, the first `int(test_share * n)` users are
    `test`, the next `int(validation_share * n)` are `validation` and the rest are `train`.

    Args:
        interactions: `Interactions`.
        test_share: float in (0, 1). Defaults to 0.2.
        validation_share: float in [0, 1); 0 makes no part `validation`. Defaults to 0.1.
        min_interactions: int, at least 1. Users of `validation` and `test` with fewer rows are left out of
            the split. Defaults to 1.
        seed: int, at least 0. Equal seeds give equal parts.

    Raises:
        DataError: if a share or the seed is out of range, or a part would be empty.
    """
    return _cold(interactions, "user", test_share, validation_share, min_interactions, seed)


def cold_items(
    interactions: Interactions,
    *,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    min_interactions: int = 1,
    seed: int = 0,
) -> Split:
    """Holds out whole items: what is asked in `validation` and `test` is known by its features alone.

    The same as `cold_users`, with items in place of users.

    Args:
        interactions: `Interactions`.
        test_share: float in (0, 1). Defaults to 0.2.
        validation_share: float in [0, 1); 0 makes no part `validation`. Defaults to 0.1.
        min_interactions: int, at least 1. Items of `validation` and `test` with fewer rows are left out of
            the split. Defaults to 1.
        seed: int, at least 0. Equal seeds give equal parts.

    Raises:
        DataError: if a share or the seed is out of range, or a part would be empty.
    """
    return _cold(interactions, "item", test_share, validation_share, min_interactions, seed)


def four_states(
    interactions: Interactions, *, user_share: float = 0.2, item_share: float = 0.2, seed: int = 0
) -> Split:
    """Holds out users and items: `train`, `user_cold`, `item_cold` and `both_cold`.

    `train` has the other users' rows with the other items, `user_cold` held-out users with the other items,
    `item_cold` the other users with held-out items, and `both_cold` held-out users with held-out items.

    Args:
        interactions: `Interactions`.
        user_share: float in (0, 1). The share of users held out. Defaults to 0.2.
        item_share: float in (0, 1). The share of items held out. Defaults to 0.2.
        seed: int, at least 0. Equal seeds give equal parts.

    Raises:
        DataError: if a share or the seed is out of range, or a part would be empty.

    Reference: the four states of [MeLU, Lee et al., 2019](https://arxiv.org/abs/1908.00413)
    """
    _check_share("user_share", user_share)
    _check_share("item_share", item_share)
    rng = _generator(seed)
    cold = {}
    for side, share in (("user", user_share), ("item", item_share)):
        column = interactions.table[f"{side}_id"]
        (held_out,), _ = _draw(rng, column, [share])
        cold[side] = column.is_in(held_out.implode())
    user, item = cold["user"], cold["item"]
    rows = {
        "train": ~user & ~item,
        "user_cold": user & ~item,
        "item_cold": ~user & item,
        "both_cold": user & item,
    }
    return Split(_parts(interactions, rows), seed)


def every_state(
    interactions: Interactions,
    *,
    test_share: float = 0.2,
    validation_share: float = 0.1,
    item_share: float = 0.1,
    warm_rows: int = 10,
    min_item_users: int = 1,
    seed: int = 0,
) -> Split:
    """`cold_users` with the same users in each part, and something held out for the other three states.

    A share of the items is met by nobody in `train`, `validation` and `test`: what test users did with them is
    `both_cold`, and what training users did `item_cold`. Of as many training users as there are test users, the last
    `warm_rows` other items are `warm`: known users, known items, a future that was not trained on.

    Args:
        interactions: `Interactions`.
        test_share: float in (0, 1), of the users. Defaults to 0.2.
        validation_share: float in [0, 1), of the users; 0 makes no part `validation`. Defaults to 0.1.
        item_share: float in (0, 1), of the items that `min_item_users` users met. Defaults to 0.1.
        warm_rows: int, at least 1. Items of a user that are held out for `warm`; users with fewer than twice as many
            keep all of theirs. The last ones in time, or any where there are no timestamps. Defaults to 10.
        min_item_users: int, at least 1. Items of fewer users are not drawn. Defaults to 1.
        seed: int, at least 0. Equal seeds give equal parts.

    Raises:
        DataError: if a share, a number or the seed is out of range, or a part would be empty.
    """
    _check_test_and_validation(test_share, validation_share)
    _check_share("item_share", item_share)
    for name, value in (("warm_rows", warm_rows), ("min_item_users", min_item_users)):
        if value < 1:
            raise DataError(f"`{name}` must be at least 1. Received: {name}={value}")
    rng, table = _generator(seed), interactions.table
    (test, validation), train = _draw(rng, table["user_id"], [test_share, validation_share])
    met = table.group_by("item_id").agg(pl.col("user_id").n_unique().alias("n"))
    (new,), _ = _draw(rng, met.filter(pl.col("n") >= min_item_users)["item_id"], [item_share])
    (watched,), _ = _draw(rng, train, [min(1.0, len(test) / len(train))])
    is_new = table["item_id"].is_in(new.implode())
    of = {
        name: table["user_id"].is_in(ids.implode())
        for name, ids in (("train", train), ("validation", validation), ("test", test), ("watched", watched))
    }
    pair = ["user_id", "item_id"]
    pairs = table.with_columns(keep=of["watched"] & ~is_new).filter("keep").unique(pair, keep="first").sort(pair)
    pairs = pairs.with_columns(lottery=pl.Series(rng.random(pairs.height)))
    if "timestamp" in table.columns:  # What was met before is not what comes next.
        first = table.group_by(pair).agg(pl.col("timestamp").min().alias("first"))
        pairs = pairs.join(first, on=pair, how="left", maintain_order="left").sort("first", "lottery")
    else:
        pairs = pairs.sort("lottery")
    pairs = pairs.filter(pl.len().over("user_id") >= 2 * warm_rows)
    last = pairs.filter(pl.int_range(pl.len()).over("user_id") >= pl.len().over("user_id") - warm_rows)
    is_warm = table.select(pair).join(
        last.select(*pair, pl.lit(True).alias("warm")), on=pair, how="left", maintain_order="left"
    )["warm"]
    is_warm = is_warm.fill_null(False)
    rows = {"train": of["train"] & ~is_new & ~is_warm}
    if validation_share:
        rows["validation"] = of["validation"] & ~is_new
    rows |= {
        "test": of["test"] & ~is_new,
        "warm": is_warm,
        "item_cold": of["train"] & is_new,
        "both_cold": of["test"] & is_new,
    }
    notes = [f"{len(new):,} items were held out of training."]
    if without := int((of["validation"] & is_new).sum()):
        notes.append(f"Rows of validation users with items held out, {without:,} in all, were left out.")
    return Split(_parts(interactions, rows), seed, tuple(notes))


def by_time(interactions: Interactions, *, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cuts at two points in time: `train` ends before `validation` begins, and that before `test`.

    Rows at the time of a cut go to the earlier part together.

    Args:
        interactions: `Interactions` with timestamps.
        validation_share: float in [0, 1); 0 makes no part `validation`. The share of rows. Defaults to 0.1.
        test_share: float in (0, 1). The share of rows. Defaults to 0.1.

    Raises:
        DataError: if there are no timestamps, a share is out of range, or a part would be empty.
    """
    _check_test_and_validation(test_share, validation_share)
    if "timestamp" not in interactions.table.columns:
        raise DataError("`interactions` must have timestamps to be split by time. Received none")
    times = interactions.table["timestamp"]
    in_order = times.sort()
    n = len(times)
    n_test, n_validation = int(test_share * n), int(validation_share * n)
    sizes = {"train": n - n_test - n_validation, "validation": n_validation, "test": n_test}
    rows, notes = {}, []
    after = pl.repeat(True, n, eager=True)
    end = 0
    for name, size in sizes.items():
        if name == "validation" and validation_share == 0:
            continue
        end += size
        cut = in_order[end - 1]
        rows[name] = after & (times <= cut)
        after &= times > cut
        late = int((times <= cut).sum()) - end
        if late:
            notes.append(f"Rows at the very time of the cut, {late:,} in all, went to {name} too.")
    return Split(_parts(interactions, rows), notes=tuple(notes))


def by_domain(
    interactions: Interactions,
    *,
    source: str,
    target: str,
    test_share: float = 0.2,
    validation_share: float = 0.0,
    seed: int = 0,
) -> Split:
    """Holds out the target domain of users who are known in the source domain.

    `source` has all rows of the source domain, `test` the target rows of a share of the users that both
    domains have, `validation` those of another share, and `train` the target rows of everybody else.

    Args:
        interactions: `Interactions` with domains.
        source: str. The domain to transfer from.
        target: str. The domain to transfer to.
        test_share: float in (0, 1). The share of the shared users that is held out. Defaults to 0.2.
        validation_share: float in [0, 1); 0 makes no part `validation`. The share of the shared users; `test` is
            the same whatever it is. Defaults to 0.
        seed: int, at least 0. Equal seeds give equal parts.

    Raises:
        DataError: if a domain is not there, no user has both, a share is out of range, or a part would be empty.
    """
    _check_test_and_validation(test_share, validation_share)
    table = interactions.table
    if "domain" not in table.columns:
        raise DataError("`interactions` must have a column `domain` to be split by domain. Received none")
    known = table["domain"].unique().sort().to_list()
    for argument, domain in (("source", source), ("target", target)):
        if domain not in known:
            raise DataError(
                f"`{argument}` must be a domain{nearest_name(domain, known)}. "
                f"Received: {argument}={domain!r}, domains {known}"
            )
    if source == target:
        raise DataError(f"`source` and `target` must differ. Received: {source!r} twice")
    in_source, in_target = table["domain"] == source, table["domain"] == target
    shared = _shared(table, "user_id", in_source, in_target)
    if shared.is_empty():
        raise DataError(f"`source` and `target` must share users. Received none with both {source!r} and {target!r}")
    (test, validation), _ = _draw(_generator(seed), shared, [test_share, validation_share])
    is_test, is_validation = (table["user_id"].is_in(held_out.implode()) for held_out in (test, validation))
    notes = []
    others = int((~in_source & ~in_target).sum())
    if others:
        notes.append(f"Rows of other domains, {others:,} in all, were left out.")
    both = len(_shared(table, "item_id", in_source, in_target))
    if both:
        notes.append(f"Item ids that both domains have, {both:,} in all, are taken to be the same items.")
    rows = {"source": in_source, "train": in_target & ~is_test & ~is_validation}
    if validation_share:
        rows["validation"] = in_target & is_validation
    rows["test"] = in_target & is_test
    return Split(_parts(interactions, rows), seed, tuple(notes))


def published_states(interactions: Interactions, states: Any) -> Split:
    """Splits as published, by a table that gives each pair of user and item its state.

    Args:
        interactions: `Interactions`.
        states: polars DataFrame with `user_id`, `item_id` (or `movie_id`) and `state`: a part's own name or
            one of `PUBLISHED_STATES`, which become `train`, `warm`, `user_cold`, `item_cold` and `both_cold`.

    Raises:
        DataError: if a column is missing, a state is unknown, a pair has two different states, or a part
            would be empty.
    """
    if not isinstance(states, pl.DataFrame):
        raise DataError(f"`states` must be a polars DataFrame. Received the type {type(states).__name__}")
    if "item_id" not in states.columns and "movie_id" in states.columns:
        states = states.rename({"movie_id": "item_id"})
    for column in ("user_id", "item_id", "state"):
        if column not in states.columns:
            raise DataError(
                f"`states` must have the column {column!r}{nearest_name(column, states.columns)}. "
                f"Received the columns {states.columns}"
            )
    known = {**PUBLISHED_STATES, **{part: part for part in PUBLISHED_STATES.values()}}
    for state in states["state"].cast(pl.String).unique():
        if state not in known:
            raise DataError(
                f"`states` must hold the states {', '.join(PUBLISHED_STATES)}{nearest_name(state, known)}. "
                f"Received: {state!r}"
            )
    pair = ["user_id", "item_id"]
    types = {column: interactions.table.schema[column] for column in pair}
    try:
        states = states.select(pl.col("state").cast(pl.String).replace(known), *pair).cast(types)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"`states` must have ids of the types of `interactions`, {types}") from error
    states = states.unique()  # Published files repeat a few rows.
    if states.select(pair).is_duplicated().any():
        user, item = states.filter(states.select(pair).is_duplicated()).sort(pair).select(pair).row(0)
        raise DataError(
            f"`states` must give each user and item one state. Received two for user {user!r} and item {item!r}"
        )
    state = interactions.table.select(pair).join(states, on=pair, how="left", maintain_order="left")["state"]
    notes = []
    without = state.null_count()
    if without:
        notes.append(f"Rows without a state, {without:,} in all, were left out.")
    unused = states.join(interactions.table, on=pair, how="anti").height
    if unused:
        notes.append(f"States of pairs that are no interaction, {unused:,} in all, were left out.")
    present = set(states["state"].unique())
    rows = {part: (state == part).fill_null(False) for part in PUBLISHED_STATES.values() if part in present}
    return Split(_parts(interactions, rows), notes=tuple(notes))


def _cold(
    interactions: Interactions,
    side: str,
    test_share: float,
    validation_share: float,
    min_interactions: int,
    seed: int,
) -> Split:
    _check_test_and_validation(test_share, validation_share)
    if min_interactions < 1:
        raise DataError(f"`min_interactions` must be at least 1. Received: min_interactions={min_interactions}")
    ids = interactions.table[f"{side}_id"]
    shares = [test_share, validation_share]
    (test, validation), train = _draw(_generator(seed), ids, shares)
    counts = ids.value_counts()
    too_few = counts.filter(pl.col("count") < min_interactions)[ids.name]
    rows, notes = {"train": ids.is_in(train.implode())}, []
    for name, held_out in (("validation", validation), ("test", test)):
        if name == "validation" and validation_share == 0:
            continue
        kept = held_out.filter(~held_out.is_in(too_few.implode()))
        rows[name] = ids.is_in(kept.implode())
        if len(kept) < len(held_out):
            few = f"{side.capitalize()}s with fewer than {min_interactions} interactions"
            notes.append(f"{few}, {len(held_out) - len(kept):,} in all, were left out of {name}.")
    return Split(_parts(interactions, rows), seed, tuple(notes))


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise DataError(f"`seed` must be at least 0. Received: seed={seed}")
    return np.random.default_rng(seed)


def _draw(rng: np.random.Generator, ids: pl.Series, shares: list[float]) -> tuple[list[pl.Series], pl.Series]:
    """Draws distinct ids for each share and returns them, and the rest."""
    ids = ids.unique().sort()
    order = rng.permutation(len(ids))  # Permuting places permutes ids alike, whatever their type.
    drawn, start = [], 0
    for share in shares:
        end = start + int(share * len(ids))
        drawn.append(ids[order[start:end]])
        start = end
    return drawn, ids[order[start:]]


def _parts(interactions: Interactions, rows: Mapping[str, pl.Series]) -> dict[str, Interactions]:
    for name, chosen in rows.items():
        if not chosen.any():
            raise DataError(
                f"Every part must have rows, and {name!r} would have none of the {len(interactions):,}; "
                "give it a larger share, or more data"
            )
    return {name: interactions.filter(chosen) for name, chosen in rows.items()}


def _shared(table: pl.DataFrame, column: str, first: pl.Series, second: pl.Series) -> pl.Series:
    ids = table[column]
    here = ids.filter(first).unique()
    return here.filter(here.is_in(ids.filter(second).unique().implode()))


def _check_test_and_validation(test_share: float, validation_share: float) -> None:
    _check_share("test_share", test_share)
    if validation_share != 0:
        _check_share("validation_share", validation_share)
    if test_share + validation_share >= 1:
        raise DataError(
            "`test_share` and `validation_share` must leave rows to train on: their sum must be below 1. "
            f"Received: test_share={test_share}, validation_share={validation_share}"
        )


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise DataError(f"`{name}` must lie between 0 and 1. Received: {name}={share}")
