"""Groups of users and classes of items, each with its figure: where a learner is worst, and how far groups are apart.

Groups are tables in long form: one row per user (or item), feature and group. A user may be in several groups of one
feature, such as a list of interests; figures are means over users, each counting the same.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.evaluation.bootstrap import bootstrap_mean, check_confidence, paired_bootstrap, resampled_means

LEAST_USERS = 10
"""Groups of fewer users say nothing."""
MOST_GROUPS = 6
"""Of a feature with more values the largest are kept."""
_MOST_VALUES = 50  # A feature with more is a number or a name.


class Gap(NamedTuple):
    """The largest difference between the groups of one feature.

    Attributes:
        feature: str.
        best: str. The group with the best figure.
        worst: str. The group with the worst.
        gap: float, at least 0. Their difference.
        low: float. Lower end of the interval of the difference between these two groups.
        high: float. Upper end.
        p_value: float, above 0 and at most 1. How often groups of the same sizes, drawn at random, are as far apart;
            this, unlike the interval, knows that the two groups were chosen for being the furthest.
    """

    feature: str
    best: str
    worst: str
    gap: float
    low: float
    high: float
    p_value: float

    @property
    def beyond_chance(self) -> bool:
        """Whether groups drawn at random are seldom as far apart: p below .05."""
        return self.p_value < 0.05

    def verdict(self) -> str:
        """The gap in words.

        Example:
        >>> Gap("age", "old", "young", 0.02, 0.01, 0.03, 0.002).verdict()
        'age: young is 0.02 [0.01, 0.03] worse than old (p = 0.002)'
        >>> Gap("age", "old", "young", 0.02, -0.01, 0.05, 0.4).verdict()
        'age: no more than chance between young and old, 0.02 apart (p = 0.4)'
        """
        if self.beyond_chance:
            interval = f"{self.gap:.3g} [{self.low:.3g}, {self.high:.3g}]"
            return f"{self.feature}: {self.worst} is {interval} worse than {self.best} (p = {self.p_value:.2g})"
        return (
            f"{self.feature}: no more than chance between {self.worst} and {self.best}, {self.gap:.3g} apart "
            f"(p = {self.p_value:.2g})"
        )


def user_groups(interactions: Interactions, *, users: pl.Series | None = None, activity: int = 3) -> pl.DataFrame:
    """The groups of users: by how much they did, and by each of their features.

    Args:
        interactions: of the users to group, e.g. `split.test`.
        users: ids of those to group, such as those with a figure; all if `None`.
        activity: int, at least 2. Groups by the number of interactions, about equally large. Defaults to 3.

    Returns:
        `user_id`, `feature` and `group`: of a feature its `MOST_GROUPS` largest groups. Numbers with many values,
        lists, free texts and what is the same for all make no groups. A feature of users that is called "activity",
        too, is "activity (feature)" here.
    """
    counts = interactions.table.group_by("user_id").len().sort("user_id")
    if users is not None:
        counts = counts.filter(pl.col("user_id").is_in(users.implode()))
    names = _bands(counts["len"].to_numpy(), activity, "interactions")
    found = [_long("user_id", counts["user_id"], "activity", names)]
    if interactions.users is not None:
        table = interactions.users.join(counts.select("user_id"), on="user_id", how="semi", maintain_order="left")
        found += _features(table, "user_id", "activity", lists=False)
    return pl.concat(found)


def item_groups(vocabulary: Vocabulary, interactions: Interactions, *, popularity: int = 3) -> pl.DataFrame:
    """The classes of items: by how many training users have them, and by each of their categories.

    Args:
        vocabulary: with the popularity of catalogue items.
        interactions: with the features of items.
        popularity: int, at least 2. Classes by popularity, each with about the same share of all interactions.
            Defaults to 3.

    Returns:
        `item_id`, `feature` and `group`: of a feature its `MOST_GROUPS` largest classes, as `user_groups`.
    """
    times, ids = vocabulary.popularity[1:], pl.Series("item_id", vocabulary.item_ids[1:].tolist())
    # As many interactions in each class: a third of the items would be a tail that nobody asks for.
    weighed = np.repeat(times, times)
    found = [_long("item_id", ids, "popularity", _bands(times, popularity, "users", of=weighed))]
    if interactions.items is not None:
        items = interactions.items.filter(pl.col("item_id").is_in(ids.implode()))
        items = items.drop(interactions.schema.item_name or [], strict=False)
        found += _features(items, "item_id", "popularity", lists=True)
    return pl.concat([part.cast({"item_id": ids.dtype}) for part in found])


def slices(
    values: pl.DataFrame,
    groups: pl.DataFrame,
    *,
    against: str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[pl.DataFrame, int]:
    """The figure of every group with at least `LEAST_USERS` users.

    Args:
        values: `user_id`, `learner` and `value`; with `item_id` too, one row for each item that a user was asked for,
            of which a user's mean over the items of a class counts once.
        groups: of users, or of items if `values` has them. Who has no group (null) is in none.
        against: a learner that each of the others is compared with, on the same users.
        confidence: float in (0, 1), of the intervals.
        seed: int, at least 0, of the bootstrap.

    Returns:
        One row per learner, feature and group: `users`, `mean`, `low`, `high` and, with `against`, `difference`,
        `difference_low` and `difference_high`; and how many groups were left out for having too few users.

    Raises:
        ValueError: if a column is not there, a value is not finite, `against` is no learner, or as `bootstrap_mean`.
    """
    key = "item_id" if "item_id" in values.columns else "user_id"
    joined = _joined(values, groups, key, ("user_id", "learner", "value"))
    mean = joined.group_by("learner", "feature", "group", "user_id").agg(pl.col("value").mean())
    names = dict.fromkeys(values["learner"])
    if against is not None and against not in names:
        raise ValueError(f"`against` must be one of the learners, {', '.join(names)}. Received: against={against!r}")
    rows, few = [], 0
    for (feature, group), part in mean.sort("user_id").group_by("feature", "group", maintain_order=True):
        own = {name: part.filter(pl.col("learner") == name)["value"].to_numpy() for name in names}
        if len(next(iter(own.values()))) < LEAST_USERS:
            few += 1
            continue
        for name, value in own.items():
            row = {"learner": name, "feature": feature, "group": group, "users": len(value)}
            row |= bootstrap_mean(value, confidence=confidence, seed=seed)._asdict()
            if against is not None:
                difference = paired_bootstrap(value, own[against], confidence=confidence, seed=seed)
                row |= {"difference": difference.mean}
                row |= {"difference_low": difference.low, "difference_high": difference.high}
            rows.append(row)
    if not rows:
        return pl.DataFrame(), few
    places = groups.select("feature", "group").unique(maintain_order=True).with_row_index("place")
    found = pl.DataFrame(rows).join(places, on=["feature", "group"], how="left", maintain_order="left")
    return found.sort("place", maintain_order=True).drop("place"), few


def worst(found: pl.DataFrame, learner: str, *, lower_is_better: bool = False) -> dict:
    """The row of `slices` in which a learner is worst, and among equals the one with the most users.

    Args:
        found: what `slices` returned, not empty.
        learner: str.
        lower_is_better: bool. Whether the figure is an error.
    """
    own = found.filter(pl.col("learner") == learner)
    return own.sort("mean", "users", descending=[lower_is_better, True], maintain_order=True).row(0, named=True)


def fairness_gap(
    values: pl.DataFrame,
    groups: pl.DataFrame,
    *,
    lower_is_better: bool = False,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Gap]:
    """How far the groups of each feature are apart, the widest gap first.

    Args:
        values: `user_id` and `value`, of one learner.
        groups: of users, as `user_groups` makes them. Who has no group (null) is in none.
        lower_is_better: bool. Whether `value` is an error.
        samples: int, at least 1. Draws, of users within their groups and of groups at random. Defaults to 1000.
        confidence: float in (0, 1), of the intervals.
        seed: int, at least 0.

    Returns:
        A `Gap` for each feature with two groups of at least `LEAST_USERS` users, none for the others.

    Raises:
        ValueError: if a column is not there, a value is not finite, a user has two of them, or an option is out of
            range.
    """
    check_confidence(confidence)
    joined = _joined(values, groups, "user_id", ("user_id", "value")).sort("user_id", "feature", "group")
    if values["user_id"].is_duplicated().any():
        raise ValueError("`values` must have one row for each user, of one learner. Received: a user with several")
    gaps = []
    for (feature,), part in joined.group_by("feature", maintain_order=True):
        sized = part.filter(pl.len().over("group") >= LEAST_USERS)
        if sized["group"].n_unique() < 2:
            continue
        names, of = np.unique(sized["group"].to_numpy().astype(str), return_inverse=True)
        users, own = np.unique(sized["user_id"].rank("dense").to_numpy(), return_inverse=True)
        value = np.zeros(len(users))
        value[own] = sized["value"].to_numpy()
        means = np.bincount(of, value[own]) / np.bincount(of)
        first, last = int(means.argmin()), len(means) - 1 - int(means[::-1].argmax())  # Two groups if all are equal.
        two = [
            resampled_means(value[own[of == number]], samples, seed + side) for side, number in enumerate((last, first))
        ]
        low, high = np.quantile(two[0] - two[1], [(1 - confidence) / 2, (1 + confidence) / 2])
        gap = float(means[last] - means[first])
        # Values dealt out anew keep how many are in each group, and break who is where.
        generator, size = np.random.default_rng(seed), np.bincount(of)
        dealt = (np.bincount(of, generator.permutation(value)[own]) / size for _ in range(samples))
        as_far = sum(np.ptp(chance) >= gap - 1e-12 for chance in dealt)
        p_value = (as_far + 1) / (samples + 1)
        best, poorest = (first, last) if lower_is_better else (last, first)
        gaps.append(
            Gap(str(feature), str(names[best]), str(names[poorest]), gap, float(low), float(high), float(p_value))
        )
    return sorted(gaps, key=lambda gap: -gap.gap)


def _joined(values: pl.DataFrame, groups: pl.DataFrame, key: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """The values of those who have a group, with their groups."""
    for name, frame, needed in (("values", values, columns), ("groups", groups, (key, "feature", "group"))):
        for column in needed:
            if column not in frame.columns:
                raise ValueError(f"`{name}` must have a column {column!r}. Received the columns {frame.columns}")
    if wrong := (~values["value"].is_finite()).fill_null(True).sum():
        raise ValueError(f"`values` must be finite. Received: {wrong} values that are not")
    return values.join(groups.drop_nulls("group"), on=key, how="inner")


def _bands(counts: np.ndarray, number: int, unit: str, of: np.ndarray | None = None) -> np.ndarray:
    """For each count the name of its band, such as "12 to 30 users"; `of` is what is cut into equal parts."""
    if number < 2:
        raise ValueError(f"groups by number of {unit} must be at least 2. Received: {number}")
    cuts = np.quantile(counts if of is None else of, np.linspace(0, 1, number + 1)[1:-1], method="higher")
    band = np.searchsorted(np.unique(cuts), counts, side="right")
    names = np.empty(len(counts), object)
    for one in np.unique(band):
        low, high = counts[band == one].min(), counts[band == one].max()
        names[band == one] = f"{low:,} to {high:,} {unit}" if low < high else f"{low:,} {unit}"
    return names


def _long(key: str, ids: pl.Series, feature: str, names: np.ndarray) -> pl.DataFrame:
    """Groups in the order of the numbers in their names; none if there is but one."""
    frame = pl.DataFrame({key: ids, "feature": feature, "group": names.tolist()})
    return frame.clear() if frame["group"].n_unique() < 2 else _in_order(frame)


def _in_order(groups: pl.DataFrame) -> pl.DataFrame:
    """Groups by the numbers that their names begin with, the others behind them by the alphabet."""
    number = pl.col("group").str.extract(r"^(-?[\d,]*\.?\d+)").str.replace_all(",", "").cast(pl.Float64, strict=False)
    return groups.sort(number, "group", nulls_last=True, maintain_order=True)


def _features(table: pl.DataFrame, key: str, taken: str, *, lists: bool) -> list[pl.DataFrame]:
    """The largest groups of each feature, in order; with `lists`, of each entry of a list too.

    A feature with the name that is `taken` gets another.
    """
    found = []
    for feature, kind in table.schema.items():
        is_list = kind == pl.List(pl.String)
        if feature == key or (kind.is_nested() and not (lists and is_list)):
            continue
        name = f"{feature} (feature)" if feature == taken else feature
        long = table.select(key, pl.lit(name).alias("feature"), group=pl.col(feature))
        long = long.explode("group").unique(maintain_order=True) if is_list else long
        if kind.is_float():
            long = long.with_columns(pl.col("group").fill_nan(None))
        if kind.is_float() and (long["group"].drop_nulls() % 1 == 0).all():
            long = long.with_columns(pl.col("group").cast(pl.Int64))  # 2 and not 2.0.
        long = long.with_columns(pl.col("group").cast(pl.String)).filter(pl.col("group").is_not_null())
        sizes = long["group"].value_counts().sort(["count", "group"], descending=[True, False])
        many = sizes.height > _MOST_VALUES
        if sizes.height < 2 or (many and (kind.is_numeric() or (not is_list and _hardly_repeats(sizes)))):
            continue
        kept = sizes["group"].head(MOST_GROUPS)
        found.append(_in_order(long.filter(pl.col("group").is_in(kept.implode()))))
    return found


def _hardly_repeats(sizes: pl.DataFrame) -> bool:
    """Whether a feature is a text or a name: most of its values come once."""
    return bool((sizes["count"] == 1).mean() > 0.5)  # type: ignore[operator]
