"""keras-tuner's oracles as a search of ours asks them: the defaults first, an end in time, and nothing lost."""

import json
import math
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras_tuner as kt
import numpy as np
from keras_tuner import oracles
from keras_tuner.engine.trial import Trial
from sklearn.exceptions import ConvergenceWarning

from tfmetarec.data.whole_file import write_whole


class _Searching(kt.Oracle):
    """What all our oracles do, before the oracle of keras-tuner among their bases.

    The first trial has the defaults. No other one begins after `stop_at`. State is written whole or not at all, and a
    trial that was begun and not ended is run again after a restart, whatever moment the process was killed at.
    """

    defaults_first = True
    stop_at: float | None = None  # As `time.time` counts.
    trials: dict[str, Any]
    ongoing_trials: dict[str, Any]
    keeps_workers = False  # Whether workers outlive the oracle's process, and bring their trials to its successor.

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self.start_order and self.stop_at is not None and time.time() >= self.stop_at:
            return {"status": "STOPPED", "values": None}
        self.draw_anew(len(self.trials))
        response = super().populate_space(trial_id)
        if self.defaults_first and not self.start_order and response["status"] == "RUNNING":
            own = {name: value for name, value in response["values"].items() if name.startswith("tuner/")}
            response["values"] = {**self._defaults(), **own}
        return response

    def _defaults(self) -> dict[str, Any]:
        space = kt.HyperParameters()
        for parameter in self.get_space().space:
            space.merge([parameter])
            if space.is_active(parameter):
                space.values[parameter.name] = parameter.default
        return space.values

    def draw_anew(self, trial: int) -> None:
        """Makes what is drawn depend on the seed and the number of the trial alone, however often one restarted."""

    def save(self) -> None:
        with write_whole(Path(self._get_oracle_fname())) as partial:
            partial.write_text(json.dumps(self.get_state()))

    def _save_trial(self, trial: Any) -> None:
        with write_whole(Path(self._get_trial_dir(trial.trial_id)) / "trial.json") as partial:
            partial.write_text(json.dumps(trial.get_state()))

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._was_with = dict(self.ongoing_trials)

    def reload(self) -> None:
        super().reload()
        for name in set(self.trials) - set(self.start_order):
            # The oracle's own file does not know it: it had not begun, and is drawn again.
            shutil.rmtree(self._get_trial_dir(name))
        self.trials = {name: self.trials[name] for name in self.start_order}
        # keras-tuner saves a trial's end while the trial is still among those under way.
        self._retry_queue = [name for name in self.trials if name not in self.end_order]
        for name in self._retry_queue:
            self.trials[name] = Trial(self.trials[name].hyperparameters, name)
        if self.keeps_workers:
            left = {who: trial.trial_id for who, trial in self._was_with.items() if trial.trial_id in self._retry_queue}
            self.ongoing_trials = {who: self.trials[name] for who, name in left.items()}
            self.tuner_ids |= set(left)
            self._retry_queue = [name for name in self._retry_queue if name not in left.values()]

    def end_trial(self, trial: Any) -> None:
        if trial.trial_id not in self.end_order:
            super().end_trial(trial)


class _Random(_Searching, oracles.RandomSearchOracle):
    pass


class _Grid(_Searching, oracles.GridSearchOracle):
    """What keras-tuner's grid does not save: the order of its combinations, in which it looks for the next one."""

    defaults_first = False  # A grid begins with them by itself.

    def get_state(self) -> dict[str, Any]:
        following = list(self._ordered_ids._next_index.items())
        return {**super().get_state(), "ordered": [self._ordered_ids._memory, following, self._ordered_ids._last_index]}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        names, following, last = state["ordered"]
        self._ordered_ids._memory, self._ordered_ids._last_index = names, last
        self._ordered_ids._data_to_index = {name: place for place, name in enumerate(names)}
        self._ordered_ids._next_index.update(dict(following))
        self._populate_next = list(self.start_order)  # Where the next one is known already, nothing comes of it.


class _Bayesian(_Searching, oracles.BayesianOptimizationOracle):
    def draw_anew(self, trial: int) -> None:
        self._random_state = np.random.RandomState(self.seed + trial)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        with warnings.catch_warnings():  # A length scale at its bound: that name hardly matters, which is an answer.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)


class _Hyperband(_Searching, oracles.HyperbandOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Lets failed trials count as the worst: keras-tuner would wait for them, and promote that many fewer."""
        failed = [trial for trial in self.trials.values() if trial.status == "FAILED"]
        for trial in failed:
            trial.status, trial.score = "COMPLETED", -math.inf if self.objective.direction == "max" else math.inf
        try:
            return super().populate_space(trial_id)
        finally:
            for trial in failed:
                trial.status, trial.score = "FAILED", None


ORACLES: dict[str, Any] = {"random": _Random, "grid": _Grid, "bayesian": _Bayesian, "hyperband": _Hyperband}


def make_oracle(
    kind: str,
    objective: kt.Objective,
    *,
    trials: int,
    epochs: int,
    stop_at: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """An oracle of keras-tuner that begins with the defaults and goes on after failures.

    Args:
        kind: "random", "grid", "bayesian" or "hyperband".
        objective: what is compared, and whether more of it is better.
        trials: int, at least 1. The most trials; of a grid or Hyperband there may be fewer.
        epochs: int, at least 1. The most epochs of a trial; Hyperband's brackets are made for them.
        stop_at: no trial begins after this time.
        seed: int, at least 0.
        options: further arguments of the oracle. `num_initial_points` of "bayesian" defaults to a quarter of the
            trials: keras-tuner's own default, three for each name in the space, would often be all of them.

    Raises:
        ValueError: for another kind, or an argument out of range.
    """
    if kind == "sklearn":
        raise ValueError(
            "`tuner` 'sklearn' tunes scikit-learn's estimators on folds of rows; a meta-learner is judged on users "
            f"whom it has not seen: take one of {', '.join(ORACLES)}."
        )
    if kind not in ORACLES:
        raise ValueError(f"`tuner` must be one of {', '.join(ORACLES)}. Received: tuner={kind!r}")
    for name, number in (("trials", trials), ("epochs", epochs)):
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={number}")
    for name, key in (("max_trials", "trials"), ("max_epochs", "epochs"), ("objective", "objective"), ("seed", "seed")):
        if name in (options or {}):
            raise ValueError(f"`options` of the tuner: `{name}` is told by `{key}`. Received: {dict(options or {})}")
    given: dict[str, Any] = {
        "objective": objective,
        # keras-tuner takes 0 for no seed at all.
        "seed": seed + 1,
        # One that fails is noted and the search goes on; `search` says so if nothing else is left.
        "max_consecutive_failed_trials": trials + 1,
    }
    if kind == "hyperband":
        given["max_epochs"] = epochs
    else:
        given["max_trials"] = trials
    if kind == "bayesian":
        given["num_initial_points"] = max(3, trials // 4)
    try:
        oracle = ORACLES[kind](**{**given, **(options or {})})
    except TypeError as error:
        raise ValueError(f"`options` of the tuner: {error}. Received: {dict(options or {})}") from None
    oracle.max_trials, oracle.stop_at, oracle.verbose = trials, stop_at, 0
    return oracle
