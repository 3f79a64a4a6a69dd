"""Choosing on validation users while training: a figure measured after adapting, at the end of every epoch."""

from collections.abc import Sequence
from typing import Any

import keras
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.evaluation.cold_start import cold_start

MONITORS = {"implicit": ("val_ndcg", "max"), "explicit": ("val_mae", "min")}


class ColdStartValidation(keras.callbacks.Callback):
    """Adds `val_ndcg` (implicit) or `val_mae` (explicit) to the logs: the mean over K on validation users.

    Put it before a `Checkpoint`, an `EarlyStopping` or a tuner that monitors the figure.

    Args:
        interactions: of validation users.
        shots: ints, the K.
        query: int. Interactions a user is judged on.
        top_k: int. Length of the recommended list.
        order: "time", "random" or `None`, as in `cold_start`.
        seed: int.
    """

    def __init__(
        self,
        interactions: Interactions,
        *,
        shots: Sequence[int] = (0, 1, 3, 5, 10, 20),
        query: int = 20,
        top_k: int = 20,
        order: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.interactions = interactions
        self.options: dict[str, Any] = {
            "shots": tuple(shots),
            "query": query,
            "top_k": top_k,
            "order": order,
            "seed": seed,
        }

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        table = cold_start({"learner": self.model}, self.interactions, **self.options)
        name, _ = MONITORS[table.feedback]
        chosen = table.summary.filter(pl.col("metric").str.starts_with(name.removeprefix("val_")))
        if logs is not None:
            logs[name] = float(chosen["mean"].mean())  # type: ignore[arg-type]
