"""Checkpoints that make an interrupted run continue as if nothing had happened."""

import json
import math
import os
import shutil
from pathlib import Path

import keras

from tfmetarec.data.whole_file import write_whole


class Checkpoint(keras.callbacks.Callback):
    """Saves the learner after every epoch, keeps the best epoch, and stops when it no longer improves.

    Give it to `fit`; if its folder already holds an earlier run, training continues there. Weights, optimizer
    state, random state, history, best epoch and patience are all restored, so the weights at the end equal
    those of an unbroken run: to the last bit where the environment variable TF_ENABLE_ONEDNN_OPTS=0 was set before
    TensorFlow was loaded, since some oneDNN kernels add up in whatever order their threads finish. A kill at any
    moment leaves the previous epoch intact.

    Args:
        folder: where the checkpoint lives; made if absent.
        monitor: name of the logged figure that decides which epoch is best; `None` for the last epoch.
        mode: "min" or "max".
        patience: int, at least 1: epochs without improvement before training stops. `None` never stops.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        monitor: str | None = "val_loss",
        mode: str = "min",
        patience: int | None = None,
    ):
        super().__init__()
        if mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max'. Received: mode={mode!r}")
        if patience is not None and patience < 1:
            raise ValueError(f"`patience` must be at least 1. Received: patience={patience}")
        self.folder, self.monitor, self.mode, self.patience = Path(folder), monitor, mode, patience
        self.history: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int:
        """Index of the best epoch so far.

        Raises:
            KeyError: if the monitored figure was never logged.
        """
        if self.monitor is None:
            return len(self.history) - 1
        sign = 1.0 if self.mode == "min" else -1.0
        figures = [sign * figures[self.monitor] for figures in self.history]
        # NaN compares as neither less nor more, and would stay the best for ever.
        return min(range(len(figures)), key=lambda epoch: (math.isnan(figures[epoch]), figures[epoch]))

    @property
    def best_weights(self) -> Path:
        """The weights file of the best epoch."""
        return self.folder / f"epoch-{self.best_epoch}.weights.h5"

    def restore(self, learner: keras.Model) -> int:
        """Loads the last complete epoch, if there is one; returns the epoch to continue with."""
        state = self.folder / "state.json"
        if not state.exists():
            return 0
        saved = json.loads(state.read_text())
        self.history = saved["history"]
        if not learner.optimizer.built:
            learner.optimizer.build(learner.trainable_variables)
        learner.load_weights(self.folder / f"epoch-{len(self.history) - 1}.weights.h5")
        for variable, value in zip(_random_states(learner), saved["random_states"], strict=True):
            variable.assign(value)
        return len(self.history)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        if self.monitor is not None and self.monitor not in figures:
            raise ValueError(
                f"`monitor` must be one of the logged figures: {', '.join(figures)}. Received: {self.monitor!r}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_whole(self.folder / f"epoch-{epoch}.weights.h5") as writing:
            self.model.save_weights(writing, overwrite=True)
        self.history = [*self.history[:epoch], figures]
        # The state names the epoch, so until it is replaced a restart uses the previous weights.
        partial = self.folder / "state.json.writing"
        random_states = [variable.numpy().tolist() for variable in _random_states(self.model)]
        partial.write_text(json.dumps({"history": self.history, "random_states": random_states}, indent=1))
        os.replace(partial, self.folder / "state.json")
        for path in self.folder.glob("epoch-*.weights.h5"):
            if path.name not in (f"epoch-{epoch}.weights.h5", self.best_weights.name):
                path.unlink()
        if self.is_finished:
            self.model.stop_training = True

    @property
    def is_finished(self) -> bool:
        """Whether patience has run out."""
        if self.patience is None or not self.history:
            return False
        return len(self.history) - 1 - self.best_epoch >= self.patience

    def clear(self) -> None:
        """Removes the checkpoint, so that the next `fit` starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.history = []


def _random_states(learner: keras.Model) -> list[keras.Variable]:
    """The states of dropout and its like, which a weights file does not hold."""
    return [variable for variable in learner.variables if variable.path.endswith("seed_generator_state")]
