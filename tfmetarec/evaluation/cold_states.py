"""The four states of cold start side by side: who is asked, and about what, known or new.

| | items of training | items never trained on |
| --- | --- | --- |
| users of training | `warm` | `item_cold` |
| users never seen | `user_cold` | `both_cold` |

In every state a user shows K interactions with items of training, as a shop would know them, and is asked about others.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.splits import Split
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.checks import check_scores
from tfmetarec.evaluation.cold_start import (
    HEADLINE,
    ColdStartTable,
    Recommender,
    check_options,
    fitted_floors,
    summarized,
)
from tfmetarec.tasks.episode import Features, Support

STATES = ("warm", "user_cold", "item_cold", "both_cold")
_BATCH = 128  # Users at once: their scores of all candidates are the largest array here.


class _Asked(NamedTuple):
    """The users of one state.

    Attributes:
        users: `(T,)` ids.
        user: their features `(T, ...)`.
        items: features `(n, ...)` of all items met here, row 0 nothing.
        support: `(T, K)` rows of `items`.
        label: `(T, K)` float32.
        known: `(T, E)` rows that a user is known to have met, 0 where none.
        query: `(T, Q)` rows that are asked for, 0 where none.
        query_label: `(T, Q)` float32.
        candidates: `(N,)` rows that are ranked.
    """

    users: pl.Series
    user: Features
    items: Features
    support: np.ndarray
    label: np.ndarray
    known: np.ndarray
    query: np.ndarray
    query_label: np.ndarray
    candidates: np.ndarray

    def chunk(self, first: int) -> "_Asked":
        part = slice(first, first + _BATCH)
        arrays = {name: getattr(self, name)[part] for name in ("users", "support", "label", "known", "query")}
        return self._replace(**arrays, query_label=self.query_label[part], user=_take(self.user, part))


def cold_states(
    recommenders: Mapping[str, Recommender],
    split: Split,
    vocabulary: Vocabulary,
    *,
    shots: int = 10,
    query: int = 10,
    top_k: int = 20,
    order: str | None = None,
    floors: bool = True,
    confidence: float = 0.95,
    progress: Callable[[str, str], None] | None = None,
    seed: int = 0,
) -> dict[str, ColdStartTable]:
    """Judges recommenders in each of the four states.

    Users of training show their last K items of `train`, users never seen their first K of `test`. Asked for are the
    `query` items that come next: of `warm`, of the rest of `test`, of `item_cold` or of `both_cold`. With implicit
    feedback the catalogue less what the user is known to have met is ranked in `warm` and `user_cold`, and all items
    held out in the other two: figures of the two halves are no more comparable than the numbers of their candidates,
    and within a state the floors say what is hard. A floor that knows items by their id ranks new ones by chance. With
    explicit feedback the ratings asked for are predicted.

    Args:
        recommenders: by name.
        split: as `tfmetarec.data.every_state` makes it.
        vocabulary: fitted on `split.train`.
        shots: int, at least 0. K: users who showed fewer are left out.
        query: int, at least 1. The most items a user is asked about; users with none are left out.
        top_k: int, at least 1. Length of the recommended list.
        order: "time" or "random": which interactions come first. Defaults to time where there are timestamps.
        floors: bool. Whether the baselines, fitted on `split.train`, stand in the same tables.
        confidence: float in (0, 1), of the intervals.
        progress: called with a recommender's name and the state before each is judged.
        seed: int: of the order, of ties, of floors and of the bootstrap.

    Returns:
        By state, in the order of `STATES`, a `ColdStartTable` whose only K is `shots`. States in which nobody can be
        asked are not there.

    Raises:
        ValueError: for an option out of range, a split without these parts, no recommender, one that is called like a
            floor, scores of a wrong shape or not finite, or if no state has anybody.
    """
    check_options((shots,), query, top_k, confidence, seed)
    if missing := [part for part in ("train", "test", "warm", "item_cold", "both_cold") if part not in split.parts]:
        raise ValueError(
            f"`split` must have a part {missing[0]!r}, as `every_state` makes it. Received: {', '.join(split.parts)}"
        )
    named = dict(recommenders)
    if floors:
        fitted = fitted_floors(split.train, vocabulary, seed=seed)
        if same := sorted(set(fitted) & set(named)):
            raise ValueError(f"`recommenders` must not be called like a floor. Received: {same[0]!r}")
        named = {**fitted, **named}
    if not named:
        raise ValueError("`recommenders` must hold at least one, or `floors` be True. Received: neither")
    feedback = vocabulary.specs.feedback
    tables = {}
    for state, asked, notes in _states(split, vocabulary, shots, query, order, seed):
        most = min(top_k, len(asked.candidates))
        kept = []
        for name, recommender in named.items():
            if progress is not None:
                progress(name, state)
            for first in range(0, len(asked.users), _BATCH):
                part = asked.chunk(first)
                figures = _figures(f"{name!r} in {state}", recommender, part, shots, most, feedback, vocabulary, seed)
                kept.append(pl.DataFrame({"learner": name, "K": shots, "user_id": part.users, **figures}))
        per_user = pl.concat(kept)
        tables[state] = ColdStartTable(
            summarized(per_user, confidence, seed), per_user, feedback, tuple(notes), confidence
        )
    if not tables:
        raise ValueError(f"`shots` and `query` leave no user in any state. Received: shots={shots}, query={query}")
    return tables


def summaries(tables: Mapping[str, ColdStartTable]) -> pl.DataFrame:
    """The summaries of all states in one frame, with a column `state`."""
    return pl.concat([table.summary.select(pl.lit(state).alias("state"), pl.all()) for state, table in tables.items()])


def by_state(tables: Mapping[str, ColdStartTable] | pl.DataFrame, metric: str | None = None) -> pl.DataFrame:
    """Learners down, states across: the means of one metric.

    Args:
        tables: what `cold_states` returned, or its `summaries`.
        metric: without the length of the list, such as "ndcg"; recall, or MAE, if `None`.

    Raises:
        ValueError: if the tables have no such metric.
    """
    rows = tables if isinstance(tables, pl.DataFrame) else summaries(tables)
    name = pl.col("metric").str.split("@").list.first()
    found = rows.filter(name.is_in(list(HEADLINE.values())) if metric is None else name == metric)
    if found.is_empty():
        known = rows.select(name.unique(maintain_order=True))["metric"].to_list()
        raise ValueError(f"`metric` must be one of {', '.join(known)}. Received: metric={metric!r}")
    return found.pivot(on="state", index="learner", values="mean", maintain_order=True)


def _states(
    split: Split, vocabulary: Vocabulary, shots: int, query: int, order: str | None, seed: int
) -> list[tuple[str, _Asked, list[str]]]:
    """Each state with its users, and what was left out."""
    lists = {part: _listed(split[part], order, seed) for part in ("train", "test", "warm", "item_cold", "both_cold")}
    if vocabulary.specs.feedback == "implicit":  # Nothing could recommend what is not in the catalogue.
        catalogue = pl.Series(vocabulary.item_ids[1:].tolist())
        for part in ("train", "test", "warm"):
            lists[part] = lists[part].filter(pl.col("item_id").is_in(catalogue.implode()))
    before = pl.int_range(pl.len()).over("user_id") < shots
    shown = {"test": lists["test"].filter(before), "train": lists["train"]}
    asked = {
        "warm": ("train", lists["warm"]),
        "user_cold": ("test", lists["test"].filter(~before)),
        "item_cold": ("train", lists["item_cold"]),
        "both_cold": ("test", lists["both_cold"]),
    }
    new = pl.concat([split["item_cold"].table["item_id"], split["both_cold"].table["item_id"]]).unique().sort()
    found = []
    for state, (part, wanted) in asked.items():
        known = shown[part]
        wanted = wanted.join(known, on=["user_id", "item_id"], how="anti", maintain_order="left")
        enough = known.group_by("user_id").len().filter(pl.col("len") >= shots)["user_id"]
        if shots == 0:  # Who has shown nothing is asked all the same.
            enough = wanted["user_id"]
        of = wanted["user_id"].unique()
        users = of.filter(of.is_in(enough.implode())).sort()
        if users.is_empty():
            continue
        notes = [f"{state}: {len(of) - len(users):,} users who showed fewer than {shots} interactions were left out"]
        ids = None if state in ("warm", "user_cold") else new
        asked_of = _assembled(split[part], vocabulary, users, known, wanted, ids, shots, query)
        found.append((state, asked_of, notes if len(of) > len(users) else []))
    return found


def _listed(interactions: Interactions, order: str | None, seed: int) -> pl.DataFrame:
    """A user's items in the order in which they are shown, each once."""
    if order not in (None, "time", "random"):
        raise ValueError(f"`order` must be 'time' or 'random'. Received: order={order!r}")
    table = interactions.table
    timed = "timestamp" in table.columns
    if order == "time" and not timed:
        raise ValueError("`order` 'time' needs a `timestamp` column in the interactions, which have none.")
    if timed and order != "random":
        table = table.sort("timestamp", maintain_order=True)
    else:
        table = table[np.random.default_rng(seed).permutation(table.height)]
    table = table.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    return table.sort("user_id", maintain_order=True).select("user_id", "item_id", pl.col("label").cast(pl.Float32))


def _assembled(
    part: Interactions,
    vocabulary: Vocabulary,
    users: pl.Series,
    known: pl.DataFrame,
    wanted: pl.DataFrame,
    new: pl.Series | None,
    shots: int,
    query: int,
) -> _Asked:
    """The users of a state with rows for ids; `new` are the candidates if they are not the catalogue."""
    known, wanted = (frame.filter(pl.col("user_id").is_in(users.implode())) for frame in (known, wanted))
    wanted = wanted.filter(pl.int_range(pl.len()).over("user_id") < query)
    support = known.filter(pl.int_range(pl.len()).over("user_id") >= pl.len().over("user_id") - shots)
    implicit = vocabulary.specs.feedback == "implicit"
    if implicit:
        catalogue = pl.Series("item_id", vocabulary.item_ids[1:].tolist())
        met = [catalogue, *([new] if new is not None else [])]
    else:
        met = [known["item_id"], wanted["item_id"]]
    ids = pl.concat(met).unique().sort()
    encoded = vocabulary.encode_items(part, ids)
    items = {name: np.concatenate([np.zeros_like(value[:1]), value]) for name, value in encoded.items()}
    place = pl.DataFrame({"item_id": ids, "row": np.arange(1, len(ids) + 1)})
    wide = {
        name: _wide(frame.join(place, on="item_id", how="left", maintain_order="left"), users)
        for name, frame in (("support", support), ("known", known), ("query", wanted))
    }
    ranked = (catalogue if new is None else new) if implicit else ids[:0]
    candidates = pl.DataFrame({"item_id": ranked}).join(place, on="item_id", how="left", maintain_order="left")
    label = np.ones_like(wide["support"][1]) if implicit else wide["support"][1]
    return _Asked(
        users,
        vocabulary.encode_users(part, users),
        items,
        wide["support"][0],
        label,
        wide["known"][0],
        wide["query"][0],
        wide["query"][1],
        candidates["row"].to_numpy(),
    )


def _wide(frame: pl.DataFrame, users: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels `(T, most)` of the users, 0 past the last; at least one wide."""
    user = np.searchsorted(users.to_numpy(), frame["user_id"].to_numpy())
    place = frame.select(pl.int_range(pl.len()).over("user_id")).to_series().to_numpy()
    shape = (len(users), int(place.max(initial=0)) + 1)
    rows, labels = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    rows[user, place], labels[user, place] = frame["row"].to_numpy(), frame["label"].to_numpy()
    return rows, labels


def _figures(
    who: str,
    recommender: Recommender,
    asked: _Asked,
    shots: int,
    top_k: int,
    feedback: str,
    vocabulary: Vocabulary,
    seed: int,
) -> dict[str, np.ndarray]:
    """Figures `(T,)` by metric."""
    length = np.full(len(asked.users), shots, np.int32)
    support = Support(asked.user, _take(asked.items, asked.support), asked.label, length)
    state, count = recommender.adapt(support), (asked.query > 0).sum(axis=1)
    if feedback == "explicit":
        scores = np.array(recommender.score(state, _take(asked.items, asked.query)), np.float32)
        check_scores(who, scores, asked.query.shape)
        clipped = np.clip(scores, *vocabulary.label_range)
        k = min(5, scores.shape[1])
        return {
            "mae": metrics.mae(asked.query_label, clipped, count),
            "rmse": metrics.rmse(asked.query_label, clipped, count),
            "ndcg@5": metrics.rating_ndcg_at_k(asked.query_label, scores, count, k=k, seed=seed),
        }
    ranked = asked.candidates
    scores = np.array(recommender.score(state, _take(asked.items, ranked)), np.float32)
    check_scores(who, scores, (len(asked.users), len(ranked)), ranking=True)
    # Columns are places among the candidates, from 1; place 0 is nothing, and so is what is no candidate.
    scores = np.concatenate([np.full((len(scores), 1), -np.inf, np.float32), scores], axis=1)
    place = np.zeros(len(asked.items["item_id"]), np.int64)
    place[ranked] = np.arange(1, len(ranked) + 1)
    top = metrics.top_items(scores, top_k, exclude=place[asked.known], seed=seed)
    relevant = place[asked.query]
    return {f"{name}@{top_k}": metric(top, relevant, count) for name, metric in metrics.RANKING.items()}


def _take(features: Features, rows: np.ndarray | slice) -> Features:
    return {name: value[rows] for name, value in features.items()}
