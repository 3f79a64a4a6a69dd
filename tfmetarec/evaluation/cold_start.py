"""The table that every claim stands on: learners and floors side by side, for users with K interactions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.data.whole_file import write_whole
from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.bootstrap import Difference, Interval, bootstrap_mean, check_confidence, paired_bootstrap
from tfmetarec.evaluation.checks import check_scores
from tfmetarec.evaluation.lists import class_vectors, diversity, novelty
from tfmetarec.models.baselines import Baseline, Ratings, floors
from tfmetarec.tasks.episode import Features, Support
from tfmetarec.tasks.table import TaskTable

HEADLINE = {"implicit": "recall", "explicit": "mae"}
LOWER_IS_BETTER = ("mae", "rmse")
METRICS = {"implicit": tuple(metrics.RANKING), "explicit": ("mae", "rmse", "ndcg")}
_NOTHING = Interval(np.nan, np.nan, np.nan)
_BATCH = 128  # Users at once: their scores over the whole catalogue are the largest array here.


class Recommender(Protocol):
    """Anything that can be judged: a meta-learner, a baseline, or a model of your own."""

    def adapt(self, support: Support) -> Any:
        """Whatever `score` needs to know of `T` users."""

    def score(self, state: Any, item: Features) -> Any:
        """Scores `(T, N)` of the items `(N, ...)` or `(T, N, ...)`."""


class Question(NamedTuple):
    """One shot count of the protocol: what users show, and what they are judged on."""

    support: Support
    seen: np.ndarray
    query: np.ndarray


@dataclass(frozen=True)
class ColdStartTable:
    """What `cold_start` found.

    Attributes:
        summary: one row per learner, K and metric: mean, and the bootstrap interval over users.
        per_user: one row per learner, K and user, with a column for each metric.
        feedback: "implicit" or "explicit".
        notes: one sentence for each thing left out.
        confidence: of the intervals.
        predictions: if they were asked for, one row per learner, K and user with lists: the items recommended, their
            scores and what was relevant, or the items asked for, their scores, predicted ratings and labels.
    """

    summary: pl.DataFrame
    per_user: pl.DataFrame
    feedback: str
    notes: tuple[str, ...] = ()
    confidence: float = 0.95
    predictions: pl.DataFrame | None = None

    def pivot(self, metric: str | None = None) -> pl.DataFrame:
        """Learners down, K across: the means of one metric (the headline one if `None`)."""
        chosen = self.summary.filter(pl.col("metric") == self.metric_name(metric))
        return chosen.pivot(on="K", index="learner", values="mean", maintain_order=True)

    def compare(self, a: str, b: str, shots: int, metric: str | None = None, *, seed: int = 0) -> Difference:
        """Paired bootstrap over users between two learners at one K."""
        values = (self.by_user(learner, shots, metric) for learner in (a, b))
        return paired_bootstrap(*values, confidence=self.confidence, seed=seed)

    def by_user(self, learner: str, shots: int | None = None, metric: str | None = None) -> np.ndarray:
        """A metric (the headline one if `None`) of every user, by id, at one K; the mean over K if that is `None`.

        Raises:
            KeyError: if the table has no such learner or K.
            ValueError: if it has no such metric.
        """
        if metric not in self.per_user.columns:
            metric = self.metric_name(metric)
        own = pl.col("learner") == learner
        chosen = self.per_user.filter(own if shots is None else own & (pl.col("K") == shots))
        if chosen.is_empty():
            raise KeyError(f"no learner {learner!r} at K={shots} in this table")
        return chosen.group_by("user_id").agg(pl.col(metric).mean()).sort("user_id")[metric].to_numpy()

    def best_floor(self, shots: int, learners: Sequence[str], metric: str | None = None) -> str:
        """The best learner at one K that is not among `learners`."""
        metric = self.metric_name(metric)
        chosen = self.summary.filter(
            (pl.col("metric") == metric) & (pl.col("K") == shots) & ~pl.col("learner").is_in(list(learners))
        )
        if chosen.is_empty():
            raise KeyError(f"nothing to choose from at K={shots} in this table")
        return chosen.sort("mean", descending=metric not in LOWER_IS_BETTER)["learner"][0]

    def metric_name(self, metric: str | None = None) -> str:
        """The full name of a metric, or of the headline one."""
        names = self.summary["metric"].unique(maintain_order=True).to_list()
        if metric is None:
            return next(name for name in names if name.split("@")[0] == HEADLINE[self.feedback])
        check_metric(metric, names)
        return metric


def cold_start(
    recommenders: Recommender | Mapping[str, Recommender],
    interactions: Interactions,
    *,
    vocabulary: Vocabulary | None = None,
    train: Interactions | None = None,
    shots: Sequence[int] = (0, 1, 3, 5, 10, 20),
    query: int = 20,
    top_k: int = 20,
    order: str | None = None,
    confidence: float = 0.95,
    predictions: str | Path | bool = False,
    progress: Callable[[str, int], None] | None = None,
    seed: int = 0,
) -> ColdStartTable:
    """Judges recommenders on users they have never seen, after K interactions of each.

    Of every user, the first `max(shots)` interactions can be support and the `query` ones after them are what
    is judged, the same for every K and every recommender. With implicit feedback the whole catalogue less the
    support is ranked (recall, nDCG, hit rate and MRR of the `top_k`, and what the list is like besides: `novelty`
    and, where items have categories, `diversity`); with explicit feedback the ratings of the query are predicted
    (MAE and RMSE, clipped to the range of ratings, and nDCG@5). Users with fewer than
    `max(shots) + query` interactions are counted in `notes` and left out. At a small K the items between the
    support and the query can be recommended and count as misses, so that part of the rise with K is theirs: it
    shows in popularity too, and comparisons belong within one K.

    Args:
        recommenders: one, or several by name.
        interactions: of users that no recommender was trained on, e.g. `split.test`.
        vocabulary: fitted on the training part. Defaults to that of the (first) recommender.
        train: training interactions. If given, the floors are fitted on them and stand in the same table.
        shots: ints, at least 0. The K to judge at.
        query: int, at least 1. Interactions a user is judged on.
        top_k: int, at least 1. Length of the recommended list.
        order: "time" or "random": which interactions come first. Defaults to time where there are timestamps.
        confidence: float in (0, 1), of the intervals.
        predictions: whether the table keeps every single prediction, from which the metrics can be computed again;
            a path keeps them and writes them to that Parquet file.
        progress: called with a recommender's name and K before each is judged.
        seed: int: of the order, of ties, of floors and of the bootstrap.

    Raises:
        ValueError: for an option out of range, a recommender that is called like a floor, scores of a wrong
            shape or not finite, or if no user has enough interactions.
    """
    named = dict(recommenders) if isinstance(recommenders, Mapping) else {_name(recommenders): recommenders}
    if vocabulary is None:
        vocabulary = next((v for r in named.values() if (v := getattr(r, "vocabulary", None)) is not None), None)
    if vocabulary is None:
        raise ValueError("`vocabulary` must be given: none of the recommenders has one of its own.")
    if not named and train is None:
        raise ValueError("`recommenders` must hold at least one, or `train` be given for the floors. Received: neither")
    check_options(shots, query, top_k, confidence, seed)
    feedback = vocabulary.specs.feedback
    width = max(shots) + query
    longest = int(interactions.table.group_by("user_id").len()["len"].to_numpy().max())
    if longest < width:
        raise ValueError(
            f"`shots` and `query` need {width} interactions of a user together. Received: users with at most {longest}"
        )
    table = TaskTable.build(interactions, vocabulary, min_interactions=width)
    slots, notes = in_order(table, width, order, seed), table.notes
    judge = _judge(vocabulary, top_k, seed)
    if top_k > vocabulary.n_items - 1:
        notes = (*notes, f"the catalogue has {vocabulary.n_items - 1} items: lists are that long")
    if train is not None:
        fitted = fitted_floors(train, vocabulary, seed=seed)
        if same := sorted(set(fitted) & set(named)):
            raise ValueError(f"`recommenders` must not be called like a floor. Received: {same[0]!r}")
        named = {**fitted, **named}
    kept: list[pl.DataFrame] = []
    written: list[pl.DataFrame] = []
    for name, recommender in named.items():
        for k in shots:
            if progress is not None:
                progress(name, k)
            for users, question in questions(table, slots, k, max(shots)):
                scores = _scores(name, recommender, question, table, vocabulary)
                figures, rows = judge(scores, question, table)
                ids = {"learner": name, "K": k, "user_id": users}
                kept.append(pl.DataFrame({**ids, **figures}))
                if predictions:
                    written.append(pl.DataFrame({**ids, **{column: _lists(value) for column, value in rows.items()}}))
    every = pl.concat(written) if written else None
    if every is not None and not isinstance(predictions, bool):
        Path(predictions).parent.mkdir(parents=True, exist_ok=True)
        with write_whole(predictions) as writing:
            every.write_parquet(writing)
    per_user = pl.concat(kept)
    return ColdStartTable(summarized(per_user, confidence, seed), per_user, feedback, notes, confidence, every)


def metric_names(vocabulary: Vocabulary, top_k: int = 20) -> list[str]:
    """The metrics that a table has: those of rankings at `top_k`, or those of ratings."""
    return list(_judge(vocabulary, top_k, seed=0).names)


def check_metric(metric: str, names: Sequence[str]) -> None:
    """Refuses what is no metric of a table that has these.

    Raises:
        ValueError: if it is none of them.
    """
    if metric not in names:
        raise ValueError(f"`metric` must be one of {', '.join(names)}. Received: metric={metric!r}")


def _judge(vocabulary: Vocabulary, top_k: int, seed: int) -> "RankingJudge | RatingJudge":
    """A judge of the feedback; a list is no longer than the catalogue."""
    if vocabulary.specs.feedback == "explicit":
        return RatingJudge(vocabulary, seed)
    return RankingJudge(vocabulary, min(top_k, vocabulary.n_items - 1), seed)


def fitted_floors(train: Interactions, vocabulary: Vocabulary, *, seed: int = 0) -> dict[str, Recommender]:
    """The baselines for this kind of feedback, fitted on `train`, by their names in tables."""
    ratings = ratings_of(train, vocabulary)
    return {baseline.name: baseline.fit(ratings) for baseline in floors(vocabulary.specs.feedback, seed=seed)}


def ratings_of(train: Interactions, vocabulary: Vocabulary) -> Ratings:
    """What baselines are fitted on: the interactions of `train`, user by user, in time order if there are timestamps.

    Args:
        train: `Interactions`, of the feedback that `vocabulary` was fitted on.
        vocabulary: `Vocabulary`. Rows of items are its rows; users have rows of their own, from 1.
    """
    table = TaskTable.build(train, vocabulary)
    user = np.repeat(np.arange(1, len(table) + 1), table.sizes)
    item = table.items.features["item_id"][table.item]
    return Ratings(user, item, table.label, len(table) + 1, vocabulary.n_items)


def in_order(table: TaskTable, width: int, order: str | None, seed: int) -> np.ndarray:
    """`(M, width)` slots of each task in the order in which they are shown."""
    if order not in (None, "time", "random"):
        raise ValueError(f"`order` must be 'time' or 'random'. Received: order={order!r}")
    if order == "time" and not table.ordered:
        raise ValueError("`order` 'time' needs a `timestamp` column in the interactions, which have none.")
    if table.ordered and order != "random":
        return table.start[:-1, None] + np.arange(width)
    keys = np.random.default_rng(seed).random(len(table.item))
    owner = np.repeat(np.arange(len(table)), table.sizes)
    shuffled = np.lexsort((keys, owner))
    return shuffled[table.start[:-1, None] + np.arange(width)]


def questions(table: TaskTable, slots: np.ndarray, k: int, most: int) -> Iterator[tuple[pl.Series, Question]]:
    """The users in batches, each with its support of length `k` and its query.

    A support is as wide for every K, so that a learner's graph is traced once, and holds nothing past its length.
    """
    width = max(most, 1)
    for first in range(0, len(table), _BATCH):
        part = slots[first : first + _BATCH]
        item = table.items.take(table.item[part[:, :width]])
        for value in item.values():
            value[:, k:] = 0
        label = table.label[part[:, :width]]
        label[:, k:] = 0
        users = table.users.take(table.user[part[:, 0]])
        support = Support(users, item, label, np.full(len(part), k, np.int32))
        yield table.keys[first : first + _BATCH], Question(support, part[:, :k], part[:, most:])


def _scores(
    name: str, recommender: Recommender, question: Question, table: TaskTable, vocabulary: Vocabulary
) -> np.ndarray:
    """`(T, I)` scores of the catalogue, row 0 minus infinity, or `(T, Q)` predicted ratings of the query."""
    ranking = vocabulary.specs.feedback == "implicit"
    item = vocabulary.catalogue if ranking else table.items.take(table.item[question.query])
    scores = np.array(recommender.score(recommender.adapt(question.support), item), np.float32)
    wanted = (len(question.query), vocabulary.n_items) if ranking else question.query.shape
    if ranking and scores.shape == wanted:
        scores[:, 0] = -np.inf
    check_scores(f"{name!r} at K={question.seen.shape[1]}", scores, wanted, ranking=ranking)
    return scores


class RankingJudge:
    """What the list that scores `(T, I)` of the catalogue make is worth, and what it is like.

    Args:
        vocabulary: of the catalogue.
        top_k: int. Length of the list.
        seed: int, of the ties.
    """

    def __init__(self, vocabulary: Vocabulary, top_k: int, seed: int):
        self.ids, self.top_k, self.seed = vocabulary.item_ids, top_k, seed
        self.share = np.exp(vocabulary.catalogue["item_level"].astype(np.float64))  # Of training users.
        self.classes = class_vectors(vocabulary) if top_k > 1 else None
        lists = ["novelty"] if self.classes is None else ["novelty", "diversity"]
        self.names = [f"{name}@{top_k}" for name in (*metrics.RANKING, *lists)]

    def __call__(
        self, scores: np.ndarray, question: Question, table: TaskTable
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Figures `(T,)` by metric, and arrays `(T, ...)` from which they can be computed again."""
        top = metrics.top_items(scores, self.top_k, exclude=table.item[question.seen], seed=self.seed)
        relevant = table.item[question.query]
        figures = [*(metric(top, relevant) for metric in metrics.RANKING.values()), novelty(top, self.share)]
        if self.classes is not None:
            figures.append(diversity(top, self.classes))
        rows = {
            "item_id": self.ids[top],
            "score": np.take_along_axis(scores, top, axis=1),
            "relevant": self.ids[relevant],
        }
        return dict(zip(self.names, figures, strict=True)), rows


class RatingJudge:
    """How far predictions `(T, Q)` are from the ratings of the query, and whether they order it well.

    Args:
        vocabulary: with the range of ratings.
        seed: int, of the ties.
    """

    names = ("mae", "rmse", "ndcg@5")

    def __init__(self, vocabulary: Vocabulary, seed: int):
        self.range, self.seed = vocabulary.label_range, seed

    def __call__(
        self, predicted: np.ndarray, question: Question, table: TaskTable
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Figures `(T,)` by metric, and arrays `(T, ...)` from which they can be computed again."""
        labels = table.label[question.query]
        clipped = np.clip(predicted, *self.range)
        figures = (
            metrics.mae(labels, clipped),
            metrics.rmse(labels, clipped),
            metrics.rating_ndcg_at_k(labels, predicted, k=min(5, labels.shape[1]), seed=self.seed),
        )
        rows = {
            "item_id": table.items.ids.to_numpy()[table.item[question.query]],
            "score": predicted,  # nDCG orders by it.
            "rating": clipped,  # MAE and RMSE judge it.
            "label": labels,
        }
        return dict(zip(self.names, figures, strict=True)), rows


def _lists(values: np.ndarray) -> pl.Series:
    """A list for each row of `(T, n)`."""
    flat = values.ravel()
    series = pl.Series(flat.tolist() if flat.dtype == object else flat)
    return series.reshape(values.shape).arr.to_list() if values.size else pl.Series([[]] * len(values))


def summarized(per_user: pl.DataFrame, confidence: float, seed: int) -> pl.DataFrame:
    """Means over users with their bootstrap intervals: one row per learner, K and metric."""
    names = [name for name in per_user.columns if name not in ("learner", "K", "user_id")]
    rows = []
    for (learner, k), group in per_user.group_by("learner", "K", maintain_order=True):
        for metric in names:
            # Of an empty list there is nothing to say; a metric that needs one item has no such users.
            values = group[metric].drop_nans().to_numpy()
            interval = bootstrap_mean(values, confidence=confidence, seed=seed) if len(values) else _NOTHING
            figures = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            rows.append({"learner": learner, "K": k, "metric": metric, **figures, "users": len(values)})
    return pl.DataFrame(rows)


def check_options(shots: Sequence[int], query: int, top_k: int, confidence: float, seed: int) -> None:
    """Refuses options of a table that are out of range."""
    if isinstance(shots, int) or not len(shots) or any(not isinstance(k, int) or k < 0 for k in shots):
        raise ValueError(f"`shots` must be one or more ints, at least 0. Received: shots={shots!r}")
    if len(set(shots)) < len(shots):
        raise ValueError(f"`shots` must be different. Received: shots={tuple(shots)}")
    for name, value, least in (("query", query, 1), ("top_k", top_k, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be an int, at least {least}. Received: {name}={value!r}")
    check_confidence(confidence)


def _name(recommender: Recommender) -> str:
    return recommender.name if isinstance(recommender, Baseline) else type(recommender).__name__
