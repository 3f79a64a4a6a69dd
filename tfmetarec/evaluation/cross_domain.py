"""Judging what was carried to another domain: users cold in the target, known by what they did in the source."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.checks import check_scores
from tfmetarec.evaluation.cold_start import ColdStartTable, Recommender, check_options, fitted_floors, summarized
from tfmetarec.tasks.episode import Support
from tfmetarec.transfer.cross_domain import Domains, Judged, judged

_BATCH = 128  # Users at once: their scores over the whole catalogue are the largest array here.


def cross_domain(
    recommenders: Mapping[str, Recommender],
    domains: Domains,
    interactions: Interactions,
    *,
    shots: Sequence[int] = (0, 20, 100),
    top_k: int = 20,
    floors: bool = True,
    confidence: float = 0.95,
    progress: Callable[[str, int], None] | None = None,
    seed: int = 0,
) -> ColdStartTable:
    """Judges recommenders on users of whom they know nothing in the target, after K source interactions of each.

    A user's support is the last K of the source interactions (all where there are fewer), and the query everything the
    user did in the target. With implicit feedback the target's catalogue is ranked (recall, nDCG, hit rate and MRR of
    the `top_k`), also what the user met in the source, where items are in both; with explicit feedback the ratings are
    predicted (MAE and RMSE of each user, clipped to the range of the target's ratings). A recommender that has
    `median(state, item)` beside `score`, the prediction whose absolute error is least, has its MAE judged by that.

    Args:
        recommenders: by name; their items are rows of `domains.vocabulary`.
        domains: what they were fitted on.
        interactions: target interactions of users whom `domains.target` does not have, e.g. `split.test`.
        shots: ints, at least 0. The K to judge at.
        top_k: int, at least 1. Length of the recommended list.
        floors: bool. Whether the baselines, fitted on both domains together, stand in the same table.
        confidence: float in (0, 1), of the intervals.
        progress: called with a recommender's name and K before each is judged.
        seed: int: of ties, of floors and of the bootstrap.

    Raises:
        ValueError: for an option out of range, no recommender, one that is called like a floor, or scores of a wrong
            shape or not finite.
    """
    check_options(shots, 1, top_k, confidence, seed)
    named = dict(recommenders)
    if floors:
        fitted = fitted_floors(domains.joint, domains.vocabulary, seed=seed)
        if same := sorted(set(fitted) & set(named)):
            raise ValueError(f"`recommenders` must not be called like a floor. Received: {same[0]!r}")
        named = {**fitted, **named}
    if not named:
        raise ValueError("`recommenders` must hold at least one, or `floors` be True. Received: neither")
    users = judged(domains, interactions)
    size = len(domains.target_rows)
    notes = [f"{len(users.users):,} users, judged by {int(users.real.sum()):,} interactions with {size:,} items."]
    if top_k > size:
        top_k = size
        notes.append(f"The target has {size} items: lists are that long.")
    judge = _judge_ranking if domains.feedback == "implicit" else _judge_ratings
    kept = []
    for name, recommender in named.items():
        for k in shots:
            if progress is not None:
                progress(name, k)
            for first in range(0, len(users.users), _BATCH):
                part = _part(users, first)
                state = recommender.adapt(_support(domains, part.users, k))
                figures = judge(f"{name!r} at K={k}", recommender, state, domains, part, top_k, seed)
                kept.append(pl.DataFrame({"learner": name, "K": k, "user_id": part.users, **figures}))
    per_user = pl.concat(kept)
    return ColdStartTable(summarized(per_user, confidence, seed), per_user, domains.feedback, tuple(notes), confidence)


def _part(users: Judged, first: int) -> Judged:
    part = slice(first, first + _BATCH)
    return users._replace(
        users=users.users[part], item=users.item[part], label=users.label[part], real=users.real[part]
    )


def _support(domains: Domains, users: pl.Series, k: int) -> Support:
    """The last `k` of what the users did in the source."""
    support = domains.support(users, longest=max(k, 1))
    if k:
        return support
    # Nothing of the user may show, not even past the length.
    item = {name: np.zeros_like(value) for name, value in support.item.items()}
    return Support(support.user, item, np.zeros_like(support.label), np.zeros_like(support.length))


def _judge_ranking(
    who: str, recommender: Recommender, state: Any, domains: Domains, users: Judged, top_k: int, seed: int
) -> dict[str, np.ndarray]:
    rows = domains.target_rows
    scores = np.array(recommender.score(state, domains.candidates()), np.float32)
    check_scores(who, scores, (len(users.users), len(rows)))
    # Columns are places in `rows`, from 1; place 0 is nothing.
    scores = np.concatenate([np.full((len(scores), 1), -np.inf, np.float32), scores], axis=1)
    relevant, length = np.searchsorted(rows, users.item) + 1, users.real.sum(axis=1)
    top = metrics.top_items(scores, top_k, seed=seed)
    return {f"{name}@{top_k}": metric(top, relevant, length) for name, metric in metrics.RANKING.items()}


def _judge_ratings(
    who: str, recommender: Recommender, state: Any, domains: Domains, users: Judged, top_k: int, seed: int
) -> dict[str, np.ndarray]:
    item = {name: value[users.item] for name, value in domains.vocabulary.catalogue.items()}
    length, known, figures = users.real.sum(axis=1), domains.target_ratings.label, {}
    for metric, predict in (("mae", getattr(recommender, "median", recommender.score)), ("rmse", recommender.score)):
        predicted = np.array(predict(state, item), np.float32)
        check_scores(who, predicted, users.item.shape)
        clipped = np.clip(predicted, known.min(), known.max())
        figures[metric] = getattr(metrics, metric)(users.label, clipped, length)
    return figures
