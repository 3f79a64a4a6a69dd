"""What a table of means does not show: what lists are like, whom they serve worst, and what a score is worth."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.splits import Split
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.data.whole_file import write_whole
from tfmetarec.evaluation import calibration, metrics
from tfmetarec.evaluation.adaptation import adaptation_curve, many_graphs
from tfmetarec.evaluation.cold_start import LOWER_IS_BETTER, ColdStartTable, Recommender, cold_start
from tfmetarec.evaluation.cold_states import by_state, cold_states, summaries
from tfmetarec.evaluation.lists import gini
from tfmetarec.evaluation.slices import LEAST_USERS, Gap, fairness_gap, item_groups, slices, user_groups, worst
from tfmetarec.meta import GradientLearner

SHORT = {"gini": "Gini", "ece": "ECE", "brier": "Brier", "f1": "F1", "auc": "AUC"}
"""Names of figures as tables show them, where they are abbreviations or people."""
_ABOUT = "about.json"


@dataclass(frozen=True)
class Examination:
    """What `examine` found, at one K, on test users.

    Attributes:
        figures: one row per learner: of lists `novelty`, `diversity`, `coverage` and `gini`; of probabilities `ece` and
            `brier`; of ratings made binary `accuracy`, `precision`, `recall`, `f1` and `auc`. Null where there is none.
        reliability: one row per learner and bin: `said`, `happened`, `rows`.
        users: `slices` of users, by the headline metric.
        items: `slices` of items: the recall of those that users met, or the absolute error of their ratings.
        gaps: a `Gap` of the learner for each feature of users, the widest first.
        steps: `adaptation_curve` of each gradient learner, by `learner`; empty if there is none.
        states: the summaries of `cold_states`, by `state`; empty if no items were held out.
        about: `K`, `metric`, `item_metric`, `learner`, `floor` (or `None`), how many groups had too few users, and the
            rating from which one is positive (or `None`).
    """

    figures: pl.DataFrame
    reliability: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    gaps: pl.DataFrame
    steps: pl.DataFrame
    states: pl.DataFrame
    about: dict[str, Any]

    def by_state(self, metric: str | None = None) -> pl.DataFrame:
        """Learners down, states across: as `tfmetarec.evaluation.by_state`; empty if no items were held out."""
        return self.states if self.states.is_empty() else by_state(self.states, metric)

    def sentences(self) -> list[str]:
        """The worst slices, the widest gap, and how far probabilities can be trusted, in words."""
        about, lower = self.about, self.about["metric"] in LOWER_IS_BETTER
        learner, said = about["learner"], []
        for kind, found, few, metric in (
            ("users", self.users, about["few_users"], about["metric"]),
            ("items", self.items, about["few_items"], about["item_metric"]),
        ):
            if not found.is_empty():
                said.append(worst_slice(found, learner, kind, metric, lower_is_better=lower))
            if few:
                groups = "1 group" if few == 1 else f"{few} groups"
                said.append(f"{groups} of {kind} with fewer than {LEAST_USERS} users left out.")
        for gap in self.gaps.head(1).iter_rows(named=True):
            said.append(f"Widest gap between groups of users: {Gap(**gap).verdict()}.")
        own = self.figures.filter(pl.col("learner") == learner)
        if own["ece"].item() is not None:
            said.append(f"A probability of {learner} is off by {own['ece'].item():.3f} on average (ECE).")
        return said

    def save(self, folder: str | Path) -> None:
        """Writes a Parquet file for each table, and `about.json`, which is there when all of them are."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ABOUT).unlink(missing_ok=True)
        for field in fields(self)[:-1]:
            with write_whole(folder / f"{field.name}.parquet") as partial:
                getattr(self, field.name).write_parquet(partial)
        with write_whole(folder / _ABOUT) as partial:
            partial.write_text(json.dumps({**self.about, "said": self.sentences()}, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> "Examination | None":
        """Reads what `save` wrote; `None` if there is nothing, or not all of it."""
        folder = Path(folder)
        if not (folder / _ABOUT).exists():
            return None
        tables = {field.name: pl.read_parquet(folder / f"{field.name}.parquet") for field in fields(cls)[:-1]}
        return cls(**tables, about=json.loads((folder / _ABOUT).read_text()))


@many_graphs()
def examine(
    recommenders: Mapping[str, Recommender],
    split: Split,
    vocabulary: Vocabulary,
    learner: str,
    *,
    learners: Sequence[str] = (),
    shots: int = 20,
    query: int = 20,
    top_k: int = 20,
    order: str | None = None,
    positive_rating: float | None = None,
    steps: Sequence[int] = (0, 1, 2, 3, 5),
    progress: Callable[[str], None] | None = None,
    seed: int = 0,
) -> Examination:
    """Looks at recommenders, floors among them, from all sides, at one K.

    Lists and figures are those of `cold_start` on test users with the same arguments. A score becomes a probability by
    `calibration.Platt`, fitted on validation users: that a recommended item is one of those that the user meets, or
    that a rating is at least `positive_rating`. The threshold of accuracy, precision, recall and F1 is chosen on
    validation users too. Of a split of `every_state`, the four states are judged.

    Args:
        recommenders: by name, with the floors that are to stand beside (see `fitted_floors`).
        split: with `train`, `validation` and `test`.
        vocabulary: fitted on `split.train`.
        learner: name of the one that slices, gaps and sentences are about.
        learners: names of all that are no floors. Defaults to `learner` alone.
        shots: int, at least 0. K.
        query: int, at least 1. Interactions a user is judged on.
        top_k: int, at least 1. Length of the recommended list.
        order: "time" or "random", as for `cold_start`.
        positive_rating: float, from which on a rating is positive. Defaults to three quarters of the way up their
            range: 4 of 1 to 5.
        steps: ints, of the adaptation curves of gradient learners; none if empty.
        progress: called with a few words before each part.
        seed: int: of the order, of ties and of intervals.

    Raises:
        ValueError: if a learner is not among the recommenders, `positive_rating` parts no ratings, or as `cold_start`.
    """
    learners = tuple(learners) or (learner,)
    if learner not in recommenders:
        raise ValueError(f"`learner` must be one of {', '.join(recommenders)}. Received: learner={learner!r}")
    if unknown := [name for name in learners if name not in recommenders]:
        raise ValueError(f"`learners` must be of {', '.join(recommenders)}. Received: {unknown[0]!r}")
    if vocabulary.specs.feedback == "implicit":
        positive_rating = None
    else:
        low, high = vocabulary.label_range
        if positive_rating is None:
            positive_rating = metrics.positive_from(low, high)
        elif not low < positive_rating <= high:  # Else all are positive, or none.
            raise ValueError(
                f"`positive_rating` must be above {low:g} and at most {high:g}. Received: {positive_rating:g}"
            )
    tell = progress or (lambda words: None)
    asked: dict[str, Any] = {"query": query, "top_k": top_k, "order": order, "seed": seed}
    options: dict[str, Any] = {**asked, "vocabulary": vocabulary, "shots": (shots,), "predictions": True}
    test = cold_start(recommenders, split.test, progress=lambda name, _: tell(f"judging {name}"), **options)
    validation = cold_start(
        recommenders,
        split.validation,
        progress=lambda name, _: tell(f"asking {name} about validation users"),
        **options,
    )
    floor = test.best_floor(shots, learners) if len(recommenders) > len(set(learners)) else None
    figures, reliability = _probabilities(test, validation, positive_rating)
    tell("grouping users and items")
    shown = list(dict.fromkeys([learner, *learners, *([floor] if floor else [])]))
    values, pairs = user_values(test, shown, shots), _pairs(test, shown)
    lower = test.metric_name() in LOWER_IS_BETTER
    people = user_groups(split.test, users=values["user_id"].unique())
    users, few_users = slices(values, people, against=floor, seed=seed)
    items, few_items = slices(pairs, item_groups(vocabulary, split.train), against=floor, seed=seed)
    gaps = fairness_gap(values.filter(pl.col("learner") == learner), people, lower_is_better=lower, seed=seed)
    about = {
        "K": shots,
        "metric": test.metric_name(),
        "item_metric": "absolute error" if lower else test.metric_name(),
        "learner": learner,
        "floor": floor,
        "few_users": few_users,
        "few_items": few_items,
        "positive_rating": positive_rating,
    }
    lists = pl.concat([_lists(test, name, vocabulary) for name in recommenders])
    return Examination(
        lists.join(figures, on="learner", how="left", maintain_order="left"),
        reliability,
        users,
        items,
        pl.DataFrame([gap._asdict() for gap in gaps]),
        _steps(recommenders, learners, split.test, shots, steps, asked, tell),
        _states(recommenders, split, vocabulary, shots, asked, tell),
        about,
    )


def worst_slice(found: pl.DataFrame, learner: str, kind: str, metric: str, *, lower_is_better: bool = False) -> str:
    """The worst slice in a sentence, with its interval, and how many others are as bad.

    Args:
        found: what `slices` returned.
        learner: whose.
        kind: "users" or "items".
        metric: its name.
        lower_is_better: bool. Whether it is an error.
    """
    row = worst(found, learner, lower_is_better=lower_is_better)
    alike = found.filter((pl.col("learner") == learner) & (pl.col("mean") == row["mean"])).height - 1
    others = f", and {alike} more as {'high' if lower_is_better else 'low'}" if alike else ""
    return (
        f"Worst slice of {kind}: {row['feature']} {row['group']}, {metric} {row['mean']:.4f} "
        f"[{row['low']:.4f}, {row['high']:.4f}] ({row['users']} users){others}."
    )


def user_values(table: ColdStartTable, names: Sequence[str], shots: int) -> pl.DataFrame:
    """The headline metric by user at one K, of these learners in this order: what `slices` takes."""
    own = table.per_user.filter(pl.col("K") == shots)
    parts = [own.filter(pl.col("learner") == name) for name in names]
    return pl.concat(parts).select("user_id", "learner", pl.col(table.metric_name()).alias("value"))


def _pairs(table: ColdStartTable, names: Sequence[str]) -> pl.DataFrame:
    """Whether a user's list holds an item that it meets, or how far the rating of an item was missed."""
    assert table.predictions is not None
    every = pl.concat([table.predictions.filter(pl.col("learner") == name) for name in names])
    if table.feedback == "implicit":
        long = every.select("user_id", "learner", pl.col("relevant").alias("item"), "item_id").explode("item")
        hit = pl.col("item").is_in(pl.col("item_id")).cast(pl.Float64)
        return long.select("user_id", "learner", hit.alias("value"), item_id="item")
    long = every.select("user_id", "learner", "item_id", "rating", "label").explode("item_id", "rating", "label")
    return long.select("user_id", "learner", (pl.col("rating") - pl.col("label")).abs().alias("value"), "item_id")


def _scored(table: ColdStartTable, name: str, positive: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 0 and 1, and scores, of everything recommended, or asked for."""
    assert table.predictions is not None
    own = table.predictions.filter(pl.col("learner") == name)
    if positive is None:
        long = own.select("item_id", "score", "relevant").explode("item_id", "score")
        long = long.select("score", label=pl.col("item_id").is_in(pl.col("relevant")))
    else:
        long = own.select("score", "label").explode("score", "label")
        long = long.select("score", label=pl.col("label") >= positive)
    long = long.filter(pl.col("score").is_finite())  # A place that nothing could fill has no score.
    return long["label"].cast(pl.Int64).to_numpy(), long["score"].to_numpy().astype(np.float64)


def _probabilities(
    test: ColdStartTable, validation: ColdStartTable, positive: float | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """How right the probabilities of each learner are, and the points of its reliability diagram."""
    rows, points = [], []
    for name in test.per_user["learner"].unique(maintain_order=True):
        labels, scores = _scored(test, name, positive)
        known, theirs = _scored(validation, name, positive)
        if not len(labels) or not len(known):
            rows.append({"learner": name, "ece": None, "brier": None})
            continue
        said = calibration.Platt.fit(known, theirs).probability(scores)
        row = {"learner": name, "ece": calibration.ece(labels, said), "brier": calibration.brier(labels, said)}
        if positive is not None:
            row |= metrics.classification(labels, scores, metrics.best_threshold(known, theirs))
        rows.append(row)
        points.append(calibration.reliability(labels, said).select(pl.lit(name).alias("learner"), pl.all()))
    kinds = {"learner": pl.String, "ece": pl.Float64, "brier": pl.Float64}
    binary = {} if positive is None else dict.fromkeys(("accuracy", "precision", "recall", "f1", "auc"), pl.Float64)
    return pl.DataFrame(rows, schema={**kinds, **binary}), pl.concat(points) if points else pl.DataFrame()


def _lists(table: ColdStartTable, name: str, vocabulary: Vocabulary) -> pl.DataFrame:
    """What the lists of one learner are like, a row."""
    row: dict[str, Any] = {"learner": name, "coverage": None, "gini": None, "novelty": None, "diversity": None}
    if table.feedback == "implicit":
        assert table.predictions is not None
        own = table.predictions.filter(pl.col("learner") == name)
        rows = vocabulary.item_rows(own["item_id"].explode())
        top = rows.reshape(own.height, -1)
        row |= {"coverage": metrics.coverage(top, vocabulary.n_items), "gini": gini(top, vocabulary.n_items)}
        means = table.summary.filter(pl.col("learner") == name)
        row |= {m: v for metric, v in means.select("metric", "mean").iter_rows() if (m := metric.split("@")[0]) in row}
    return pl.DataFrame([row], schema={"learner": pl.String, **dict.fromkeys(list(row)[1:], pl.Float64)})


def _steps(
    recommenders: Mapping[str, Recommender],
    learners: Sequence[str],
    interactions: Interactions,
    shots: int,
    steps: Sequence[int],
    asked: Mapping[str, Any],
    tell: Callable[[str], None],
) -> pl.DataFrame:
    """The curves of the gradient learners at a few interactions and at all."""
    found = []
    for name in learners:
        one = recommenders[name]
        if isinstance(one, GradientLearner) and len(steps) and shots:
            tell(f"taking steps with {name}")
            few = sorted({max(1, shots // 4), shots})
            curve = adaptation_curve(one, interactions, steps=steps, shots=few, **asked)
            found.append(curve.select(pl.lit(name).alias("learner"), pl.all()))
    return pl.concat(found) if found else pl.DataFrame()


def _states(
    recommenders: Mapping[str, Recommender],
    split: Split,
    vocabulary: Vocabulary,
    shots: int,
    asked: Mapping[str, Any],
    tell: Callable[[str], None],
) -> pl.DataFrame:
    if "both_cold" not in split.parts:
        return pl.DataFrame()
    tables = cold_states(
        recommenders,
        split,
        vocabulary,
        shots=shots,
        floors=False,
        progress=lambda name, state: tell(f"judging {name} in {state}"),
        **asked,
    )
    return summaries(tables)
