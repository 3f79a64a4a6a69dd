"""How long all metrics take on a million predictions: 10,000 users, 100 candidates each, or lists of 100.

Nothing loops over users, so that evaluating costs what adapting and scoring cost. Users, candidates and ratings are
made up, and scores have ties.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from benchmarks import report
from tfmetarec.evaluation import calibration, lists, metrics
from tfmetarec.evaluation.bootstrap import paired_bootstrap
from tfmetarec.evaluation.slices import fairness_gap, slices

NAME = "evaluation"
TARGET = 10.0  # Seconds.
USERS, CANDIDATES, ITEMS, QUERY = 10_000, 100, 20_000, 20


def work(users: int, seed: int) -> dict[str, Callable[[], Any]]:
    """The parts by name, each a call."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 500, (users, CANDIDATES)) / 500
    ratings = generator.integers(1, 6, scores.shape).astype(float)
    binary, flat = (ratings >= 4).astype(int).ravel(), scores.ravel()
    top = 1 + (generator.integers(ITEMS - 1, size=(users, 1)) + 7 * np.arange(CANDIDATES)) % (ITEMS - 1)
    relevant = 1 + (generator.integers(ITEMS - 1, size=(users, 1)) + 7 * np.arange(QUERY)) % (ITEMS - 1)
    share, vectors = generator.random(ITEMS) * 0.9 + 0.01, generator.normal(size=(ITEMS, 16))
    recall = metrics.recall_at_k(top, relevant)
    ids = pl.Series("user_id", np.arange(users))
    values = pl.DataFrame({"user_id": ids, "learner": "a", "value": recall})
    groups = pl.DataFrame({"user_id": ids, "feature": "age", "group": generator.integers(6, size=users).astype(str)})
    ranking = (metrics.recall_at_k, metrics.precision_at_k, metrics.hit_rate, metrics.mrr, metrics.ndcg_at_k)
    return {
        "the best 20 of 100": lambda: metrics.top_items(scores, 20, seed=seed),
        "recall, precision, hit rate, MRR, nDCG of lists of 100": lambda: [each(top, relevant) for each in ranking],
        "MAE, RMSE, nDCG@5 of ratings": lambda: [
            metrics.mae(ratings, scores), metrics.rmse(ratings, scores), metrics.rating_ndcg_at_k(ratings, scores)
        ],
        "accuracy, precision, recall, F1, AUC and their threshold": lambda: metrics.classification(
            binary, flat, metrics.best_threshold(binary, flat)
        ),
        "Platt, reliability, ECE, Brier": lambda: _calibrated(binary, flat),
        "coverage, Gini, novelty, diversity": lambda: [
            metrics.coverage(top, ITEMS), lists.gini(top, ITEMS), lists.novelty(top, share),
            lists.diversity(top, vectors),
        ],
        "slices and gap of six groups": lambda: [slices(values, groups), fairness_gap(values, groups)],
        "paired bootstrap": lambda: paired_bootstrap(recall, recall[::-1]),
    }  # fmt: skip


def _calibrated(labels: np.ndarray, scores: np.ndarray) -> None:
    said = calibration.Platt.fit(labels, scores).probability(scores)
    calibration.reliability(labels, said)
    calibration.ece(labels, said)
    calibration.brier(labels, said)


def measure(users: int, seed: int) -> list[dict[str, Any]]:
    """Seconds of each part, the best of three turns."""
    found = []
    for name, call in work(users, seed).items():
        turns = []
        for _ in range(3):
            clock = time.perf_counter()
            call()
            turns.append(time.perf_counter() - clock)
        found.append({"what": name, "seconds": min(turns)})
    return found


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, "Seconds of all metrics on a million predictions.", arguments)
    users = 500 if options.quick else USERS
    measured = [measure(users, seed) for seed in range(options.seeds)]
    rows = [report.merged(list(same)) for same in zip(*measured, strict=True)]
    total = sum(row["seconds"] for row in rows)
    title = f"{users:,} users, {users * CANDIDATES:,} predictions"
    figures = {title: [*rows, {"what": "all of it", "seconds": total}]}
    config = {"users": users, "candidates": CANDIDATES, "items": ITEMS, "query": QUERY}
    targets = [report.Target("seconds of all of it", total, "at most", TARGET)]
    return report.finish(options, config=config, figures=figures, targets=targets, console=report.console())


if __name__ == "__main__":
    report.run(main)
