"""When a trial ends before its last epoch: it diverged, it is hopeless, or time is up."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import keras
import keras_tuner as kt

STATE = Path("checkpoint") / "state.json"  # Of a trial, by its folder.


class Diverged(keras.callbacks.Callback):
    """Fails a trial at the end of the first epoch that logs a figure which is not finite.

    Args:
        names: of the figures.
    """

    def __init__(self, *names: str):
        super().__init__()
        self.names = names

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name in self.names:
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                raise kt.errors.FailedTrialError(f"diverged: {name} was {value} after epoch {epoch + 1}")


class MedianStopping(keras.callbacks.Callback):
    """Stops a trial whose best figure is worse than what the others had on average after so many epochs.

    That average is the median over the other trials of the mean of their figures up to the same epoch. Their histories
    are read from the folder that all workers share.

    Args:
        folder: of the search, with a folder `trial_*` for each trial.
        trial: name of this trial's folder.
        objective: name of the logged figure.
        direction: "min" or "max".
        least_epochs: int, at least 1. Never stops earlier.
        least_trials: int, at least 1. Nor before so many other trials have come as far.

    Reference: the median stopping rule of [Golovin et al., 2017](https://doi.org/10.1145/3097983.3098043), section 3.2.
    """

    def __init__(
        self,
        folder: str | Path,
        trial: str,
        objective: str,
        direction: str,
        *,
        least_epochs: int = 2,
        least_trials: int = 4,
    ):
        super().__init__()
        self.folder, self.trial, self.objective, self.sign = Path(folder), trial, objective, 1.0
        if direction == "min":
            self.sign = -1.0
        self.least_epochs, self.least_trials = least_epochs, least_trials
        self.figures: list[float] = []
        self.stopped_at: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.figures = self._history(self.folder / self.trial)  # Of an interrupted trial.

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.figures = [*self.figures[:epoch], self.sign * float((logs or {})[self.objective])]
        others = [figures for figures in self._others() if len(figures) > epoch]
        if epoch + 1 < self.least_epochs or len(others) < self.least_trials:
            return
        if max(self.figures) < median(mean(figures[: epoch + 1]) for figures in others):
            self.stopped_at = epoch + 1
            self.model.stop_training = True

    def _others(self) -> list[list[float]]:
        folders = sorted(self.folder.glob("trial_*"))
        return [self._history(folder) for folder in folders if folder.name != self.trial]

    def _history(self, trial: Path) -> list[float]:
        return [self.sign * figures[self.objective] for figures in history(trial)]


class Deadline(keras.callbacks.Callback):
    """Stops training at the end of the epoch in which time is up.

    Args:
        stop_at: as `time.time` counts, or `None` for never.
    """

    def __init__(self, stop_at: float | None):
        super().__init__()
        self.stop_at = stop_at

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.stop_at is not None and time.time() >= self.stop_at:
            self.model.stop_training = True


class Told(keras.callbacks.Callback):
    """Tells how far a trial is, after every epoch.

    Args:
        tell: gets the epoch, from 1 on, and the objective.
        objective: name of the logged figure.
    """

    def __init__(self, tell: Callable[[int, float], None], objective: str):
        super().__init__()
        self.tell, self.objective = tell, objective

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.tell(epoch + 1, float((logs or {})[self.objective]))


def history(trial: Path) -> list[dict[str, float]]:
    """What each epoch of a trial logged, by the trial's folder; empty where there is none yet."""
    file = trial / STATE
    return json.loads(file.read_text())["history"] if file.exists() else []
