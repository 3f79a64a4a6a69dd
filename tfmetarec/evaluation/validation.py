"""Choosing on validation users while training: a figure measured after adapting, at the end of every epoch."""

from collections.abc import Sequence
from typing import Any

import keras
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.evaluation.cold_start import LOWER_IS_BETTER, METRICS, cold_start

MONITORS = {"implicit": ("val_ndcg", "max"), "explicit": ("val_mae", "min")}


def monitor_of(feedback: str, metric: str | None = None) -> tuple[str, str]:
    """The name under which `ColdStartValidation` logs a metric, and whether "min" or "max" of it is best."""
    if metric is None:
        return MONITORS[feedback]
    return f"val_{metric}", "min" if metric in LOWER_IS_BETTER else "max"


class ColdStartValidation(keras.callbacks.Callback):
    """Adds a metric on validation users to the logs, the mean over K: `val_ndcg`, `val_mae` of ratings, or another.

    Put it before a `Checkpoint`, an `EarlyStopping` or a tuner that monitors the figure.

    Args:
        interactions: of validation users.
        shots: ints, the K.
        query: int. Interactions a user is judged on.
        top_k: int. Length of the recommended list.
        order: "time", "random" or `None`, as in `cold_start`.
        metric: name of a metric of the table, such as "recall@20", or "recall" whatever the length of the list. It is
            logged as `val_` and this name. Defaults to nDCG, or MAE.
        seed: int.

    Raises:
        ValueError: for a metric that a table of such feedback does not have.
    """

    def __init__(
        self,
        interactions: Interactions,
        *,
        shots: Sequence[int] = (0, 1, 3, 5, 10, 20),
        query: int = 20,
        top_k: int = 20,
        order: str | None = None,
        metric: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        known = METRICS[interactions.schema.feedback]
        long = [f"{name}@{top_k}" for name in known] if interactions.schema.feedback == "implicit" else ["ndcg@5"]
        if metric is not None and metric not in (*known, *long):
            raise ValueError(f"`metric` must be one of {', '.join((*known, *long))}. Received: metric={metric!r}")
        self.interactions, self.metric = interactions, metric
        self.options: dict[str, Any] = {
            "shots": tuple(shots),
            "query": query,
            "top_k": top_k,
            "order": order,
            "seed": seed,
        }

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        table = cold_start({"learner": self.model}, self.interactions, **self.options)
        name, _ = monitor_of(table.feedback, self.metric)
        wanted = name.removeprefix("val_").split("@")[0]  # A small catalogue has shorter lists.
        chosen = table.summary.filter(pl.col("metric").str.split("@").list.first() == wanted)
        if logs is not None:
            logs[name] = float(chosen["mean"].mean())  # type: ignore[arg-type]
