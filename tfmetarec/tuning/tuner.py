"""The tuner: runs the trials that an oracle of keras-tuner asks for, each resumable, none able to end the search."""

import contextlib
import gc
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_tuner as kt

from tfmetarec.data.whole_file import write_whole
from tfmetarec.meta import Checkpoint
from tfmetarec.tasks.stream import taken_up
from tfmetarec.tuning.stopping import Deadline, Diverged, MedianStopping, Told

OUTCOME = "outcome.json"
Tell = Callable[[str, int, float], None]
Ended = Callable[["MetaTuner", Any], None]


class MetaTuner(kt.Tuner):
    """Runs trials with a checkpoint after every epoch.

    A killed search goes on in the middle of its trial when it is made again with the same folder. A trial that
    Hyperband promotes goes on as if it had never stopped: with its optimizer's state, and the episodes that come next.
    So its figure is that of one unbroken training. What a failed trial died of is kept beside it.

    Args:
        oracle: of keras-tuner; see `make_oracle`.
        hypermodel: `MetaHyperModel`, any other `keras_tuner.HyperModel`, or a function that gives a compiled model for
            the hyperparameters. What it fits must log the objective.
        folder: of the search; made if absent. Workers on several machines share it.
        epochs: int, at least 1. The most epochs of a trial.
        patience: int, at least 1: epochs without improvement before a trial ends. `None` for never.
        prune: whether the median rule ends hopeless trials. Not with Hyperband, which does so itself.
        stop_at: the trial that runs at this time ends with its epoch, and none begins later.
        tell: called after every epoch with the trial's id, the epoch from 1 on, and the objective.
        ended: called after every trial with this tuner and the trial, in the process that has the oracle.

    Raises:
        ValueError: for an oracle with several objectives, or none.
    """

    def __init__(
        self,
        oracle: Any,
        hypermodel: Any,
        *,
        folder: str | Path,
        epochs: int = 20,
        patience: int | None = None,
        prune: bool = True,
        stop_at: float | None = None,
        tell: Tell | None = None,
        ended: Ended | None = None,
    ):
        if type(oracle.objective) is not kt.Objective:
            raise ValueError(f"`oracle` must have one objective, by name. Received: {type(oracle.objective).__name__}")
        folder = Path(folder)
        self.epochs, self.patience, self.stop_at = epochs, patience, stop_at
        self.tell, self.ended = tell, ended
        self.prune = prune and not isinstance(oracle, kt.oracles.HyperbandOracle)
        self._begun: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        with contextlib.redirect_stdout(io.StringIO()):  # keras-tuner prints where it reloads from.
            super().__init__(
                oracle=oracle, hypermodel=hypermodel, directory=str(folder.parent), project_name=folder.name
            )
        self._told = len(oracle.end_order)

    @property
    def folder(self) -> Path:
        """Of the search."""
        return Path(self.project_dir)

    def trial_folder(self, trial_id: str) -> Path:
        """Of one trial: its file of keras-tuner, `outcome.json` and `checkpoint/`."""
        return Path(self.get_trial_dir(trial_id))

    def checkpoint(self, trial_id: str) -> Checkpoint:
        """The checkpoint of a trial, which a `fit` with it continues."""
        objective = self.oracle.objective
        folder = self.trial_folder(trial_id) / "checkpoint"
        return Checkpoint(folder, monitor=objective.name, mode=objective.direction, patience=self.patience)

    def run_trial(self, trial: Any, *arguments: Any, callbacks: Any = (), **options: Any) -> dict[str, float]:
        """Trains a trial, from where it stopped if it was begun; returns what its best epoch logged."""
        try:
            return self._train(trial, *arguments, callbacks=callbacks, **options)
        except Exception as error:
            self._reasons[trial.trial_id] = _in_a_sentence(error)
            raise  # keras-tuner marks the trial as failed.

    def _train(self, trial: Any, *arguments: Any, callbacks: Any, **options: Any) -> dict[str, float]:
        hp, objective = trial.hyperparameters, self.oracle.objective
        self._promote(trial)
        keras.utils.clear_session()  # Of the trial before.
        gc.collect()
        model = self.hypermodel.build(hp)
        checkpoint = self.checkpoint(trial.trial_id)
        stopping: list[keras.callbacks.Callback] = [Diverged("loss", objective.name)]
        if self.tell is not None:
            tell, trial_id = self.tell, trial.trial_id
            stopping.append(Told(lambda epoch, value: tell(trial_id, epoch, value), objective.name))
        if self.prune:
            folder = self.trial_folder(trial.trial_id)
            stopping.append(MedianStopping(folder.parent, folder.name, objective.name, objective.direction))
        stopping += [Deadline(self.stop_at), checkpoint]  # The checkpoint last: it saves what the others let pass.
        first, epochs = taken_up(model, stopping, 0, hp.values.get("tuner/epochs", options.pop("epochs", self.epochs)))
        if first < epochs:
            options = {"verbose": 0, **options, "initial_epoch": first, "epochs": epochs}
            self.hypermodel.fit(hp, model, *arguments, callbacks=[*callbacks, *stopping], **options)
        return checkpoint.history[checkpoint.best_epoch]

    def _promote(self, trial: Any) -> None:
        """Gives a trial that goes on from another one that one's checkpoint."""
        past = trial.hyperparameters.values.get("tuner/trial_id")
        own = self.trial_folder(trial.trial_id) / "checkpoint"
        if past is None or own.exists() or not (self.trial_folder(past) / "checkpoint").exists():
            return
        partial = own.with_name("checkpoint.copying")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.trial_folder(past) / "checkpoint", partial)
        partial.rename(own)

    def load_model(self, trial: Any) -> keras.Model:
        """The trained model of a trial, as it was after its best epoch."""
        model = self.hypermodel.build(trial.hyperparameters)
        checkpoint = self.checkpoint(trial.trial_id)
        checkpoint.restore(model)
        model.load_weights(checkpoint.best_weights)
        return model

    def pre_create_trial(self) -> None:
        if self._is_worker():
            time.sleep(0.2)  # A worker that has to wait would ask without a pause.

    def on_trial_begin(self, trial: Any) -> None:
        self._begun[trial.trial_id] = time.monotonic()

    def on_trial_end(self, trial: Any) -> None:
        seconds = time.monotonic() - self._begun.pop(trial.trial_id)
        write_outcome(self.trial_folder(trial.trial_id), seconds, self._reasons.pop(trial.trial_id, None))
        super().on_trial_end(trial)
        if not self._is_worker():
            self.tell_of_ended()

    def tell_of_ended(self) -> None:
        """Tells of the trials that have ended since the last time, here or in a worker."""
        for trial_id in self.oracle.end_order[self._told :]:
            self._told += 1
            if self.ended is not None:
                self.ended(self, self.oracle.trials[trial_id])


def write_outcome(folder: Path, seconds: float | None, reason: str | None) -> None:
    """Notes how long a trial took and why it failed, if it did."""
    with write_whole(folder / OUTCOME) as partial:
        partial.write_text(json.dumps({"seconds": seconds, "reason": reason}))


def _in_a_sentence(error: Exception) -> str:
    """The first line of what went wrong, after its kind."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, kt.errors.FailedTrialError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
