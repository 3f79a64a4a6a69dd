"""A search of a model that costs nothing: what is tried, what is kept, and how it goes on after anything."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import keras_tuner as kt
import polars as pl
import pytest
import tensorflow as tf

from tfmetarec.evaluation.drawing import save_all
from tfmetarec.tuning import (
    MedianStopping,
    best_trial,
    drawings,
    epochs_of,
    importance,
    make_oracle,
    search,
    trials_table,
)
from tfmetarec.tuning import write_tensorboard as write_hparams
from tfmetarec.tuning.stopping import Deadline

SCRIPT = Path(__file__).with_name("searching.py")
OBJECTIVE = kt.Objective("val_loss", "min")
KINDS = ["random", "hyperband", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("grid", "bayesian"))]


def diary(folder):
    return (folder / "diary").read_text().split()


def values(tuner):
    return [json.loads(row) for row in trials_table(tuner)["values"]]


def run(folder, workers=1, die_at=""):
    environment = {**os.environ, "DIE_AT": die_at}
    command = [sys.executable, str(SCRIPT), str(folder), str(workers)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tuner_tries_the_defaults_first_and_finds_the_better_rate(searching, tmp_path, kind):
    ended = []
    tuner = searching.fit_line(
        tmp_path, tuner=kind, trials=5, ended=lambda _, trial: ended.append((trial.trial_id, trial.score))
    )
    table = trials_table(tuner)
    assert values(tuner)[0] == {"rate": 0.01}
    assert table["status"].to_list() == ["completed"] * 5
    assert ended == list(zip(table["trial"], table["score"], strict=True))
    best = best_trial(tuner)
    assert best.score == min(table["score"])
    assert best.hyperparameters["rate"] == max(row["rate"] for row in values(tuner))  # All are too small.
    # The trained model is there, as it was after its best epoch.
    loaded = tuner.load_model(best)
    assert loaded.evaluate(searching.X, searching.Y, verbose=0) == pytest.approx(best.score, rel=1e-5)
    assert tuner.get_best_hyperparameters()[0].values["rate"] == best.hyperparameters["rate"]


def test_equal_seeds_try_the_same_and_seed_0_is_a_seed(searching, tmp_path):
    tried = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        tried.append(values(searching.fit_line(tmp_path / name, seed=seed, epochs=1)))
    assert tried[0] == tried[1] != tried[2]


def test_a_search_killed_in_a_trial_goes_on_in_it_and_ends_as_an_unbroken_one(searching, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for folder in (broken, whole):
        folder.mkdir()
    died = run(broken, die_at="2:2")
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert diary(broken) == ["0:1", "0:2", "0:3", "1:1", "1:2", "1:3", "2:1", "2:2"]
    tuner = searching.fit_line(broken)
    assert diary(broken)[8:] == ["2:2", "2:3", "3:1", "3:2", "3:3"]  # The second epoch had not been saved.
    unbroken = searching.fit_line(whole)
    assert trials_table(tuner).drop("seconds").equals(trials_table(unbroken).drop("seconds"))
    assert [epochs_of(tuner, t) for t in tuner.oracle.trials.values()] == [
        epochs_of(unbroken, t) for t in unbroken.oracle.trials.values()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_search_repeats_nothing_and_may_be_made_longer(searching, tmp_path, kind):
    short, long = tmp_path / "short", tmp_path / "long"
    for folder in (short, long):
        folder.mkdir()
    searching.fit_line(short, tuner=kind, trials=2)
    before = diary(short)
    searching.fit_line(short, tuner=kind, trials=2)
    assert diary(short) == before
    longer, at_once = (searching.fit_line(folder, tuner=kind, trials=4) for folder in (short, long))
    assert diary(short) == diary(long)
    assert trials_table(longer).drop("seconds").equals(trials_table(at_once).drop("seconds"))


@pytest.mark.parametrize("kind", ["grid", "hyperband"])
def test_a_search_killed_at_the_start_of_a_trial_goes_on_as_an_unbroken_one(searching, tmp_path, kind):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for folder in (broken, whole):
        folder.mkdir()

    class Killed(BaseException):
        """As Ctrl-C."""

    own = searching.build

    def build(hp):
        if (broken / "search" / "trial_2").exists():  # It has its file, and is about to be built.
            raise Killed
        return own(hp)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "build", build)
        with pytest.raises(Killed):
            searching.fit_line(broken, tuner=kind)
    tuner, unbroken = (searching.fit_line(folder, tuner=kind) for folder in (broken, whole))
    assert trials_table(tuner).drop("seconds").equals(trials_table(unbroken).drop("seconds"))


def test_a_trial_of_which_the_oracle_does_not_know_yet_is_drawn_again(searching, tmp_path):
    searching.fit_line(tmp_path, trials=1)
    search = tmp_path / "search"
    shutil.copytree(search / "trial_0", search / "trial_1")  # Killed before the oracle's own file was written.
    file = search / "trial_1" / "trial.json"
    file.write_text(file.read_text().replace('"trial_id": "0"', '"trial_id": "1"'))
    table = trials_table(searching.fit_line(tmp_path, trials=2))
    assert table["status"].to_list() == ["completed"] * 2
    assert diary(tmp_path)[3:] == ["1:1", "1:2", "1:3"]


def test_a_failed_trial_counts_as_the_worst_of_its_bracket(tmp_path):
    oracle = make_oracle("hyperband", OBJECTIVE, trials=50, epochs=9)
    oracle._set_project_dir(str(tmp_path), "search")
    oracle.update_space(_with_a_float())
    rounds = []
    while (trial := oracle.create_trial("one")).status == "RUNNING" and len(rounds) < 13:
        rounds.append(trial.hyperparameters.values["tuner/round"])
        number = int(trial.trial_id)
        trial.status = "FAILED" if number in (2, 5) else "COMPLETED"
        if trial.status == "COMPLETED":
            oracle.update_trial(trial.trial_id, {"val_loss": float(number)})
        oracle.end_trial(trial)
    assert rounds == [0] * 9 + [1] * 3 + [2]
    promoted = [trial.hyperparameters.values["tuner/trial_id"] for trial in list(oracle.trials.values())[9:13]]
    assert [int(name) for name in promoted] == [0, 1, 3, 9]


def _with_a_float():
    hp = kt.HyperParameters()
    hp.Float("rate", 0.0, 1.0)
    return hp


def test_what_hyperband_promotes_goes_on_as_if_it_had_never_stopped(searching, tmp_path):
    tuner = searching.fit_line(tmp_path, tuner="hyperband", trials=20, epochs=4, options={"factor": 2})
    table = trials_table(tuner)
    (last, *_) = table.filter(pl.col("goes_on_from").is_not_null() & (pl.col("epochs") == 4)).iter_rows(named=True)
    trial = tuner.oracle.trials[last["trial"]]
    model = searching.build(kt.HyperParameters.from_config({"space": [], "values": dict(trial.hyperparameters.values)}))
    history = model.fit(
        searching.X, searching.Y, validation_data=(searching.X, searching.Y), epochs=4, verbose=0, shuffle=False
    ).history
    found = [epoch["val_loss"] for epoch in epochs_of(tuner, trial)]
    assert len(found) == 4
    assert found == pytest.approx(history["val_loss"], rel=1e-5)


def failing(hp):
    """Diverges at every rate but the default."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    rate = hp.Choice("rate", [1e30, 0.01, 0.0], default=0.01)
    if rate == 0:
        raise MemoryError("no room for it\nand more lines")
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def test_failed_trials_are_kept_with_their_reason_and_the_search_goes_on(searching, tmp_path):
    data = {"x": searching.X, "y": searching.Y, "validation_data": (searching.X, searching.Y)}
    tuner = search(failing, objective=OBJECTIVE, folder=tmp_path / "s", tuner="grid", trials=9, epochs=2, **data)
    found = {json.loads(row["values"])["rate"]: row for row in trials_table(tuner).iter_rows(named=True)}
    assert found[0.01]["status"] == "completed"
    assert found[1e30]["status"] == found[0.0]["status"] == "failed"
    assert re.fullmatch("diverged: (val_)?loss was (inf|nan) after epoch 1", found[1e30]["reason"])
    assert found[0.0]["reason"] == "MemoryError: no room for it"
    assert found[0.0]["score"] is None
    assert list(drawings(tuner)) == ["objective", "learning_curves"]


def test_a_search_in_which_all_failed_says_so_with_the_reasons(searching, tmp_path):
    def broken(hp):
        raise ValueError(f"cannot build width {hp.Int('width', 1, 9)}")

    # keras-tuner builds once before it searches: what is wrong from the start shows there.
    with pytest.raises(ValueError, match="cannot build width 1"):
        search(broken, objective=OBJECTIVE, folder=tmp_path / "early", tuner="random", trials=3)

    class Late(kt.HyperModel):
        def build(self, hp):
            hp.Int("width", 1, 9)
            return searching.build(hp)

        def fit(self, hp, model, *arguments, **options):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="all 4 trials failed, .* trial 0: RuntimeError: the disk is full; trial 1"):
        search(Late(), objective=OBJECTIVE, folder=tmp_path / "late", tuner="random", trials=4)


def test_time_ends_a_search_after_the_epoch_that_runs(searching, tmp_path):
    with pytest.raises(ValueError, match="`max_minutes` must be greater than 0. Received: max_minutes=0"):
        searching.fit_line(tmp_path, max_minutes=0)
    tuner = searching.fit_line(tmp_path, trials=50, epochs=10**6, max_minutes=0.02, patience=None)
    table = trials_table(tuner)
    assert table.height == 1
    assert table["status"].to_list() == ["completed"]
    assert 1 <= table["epochs"][0] < 10**6


def test_the_deadline_lets_training_go_on_until_it_comes():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    for stop_at, stops in ((None, False), (time.time() + 100, False), (time.time() - 1, True)):
        callback = Deadline(stop_at)
        callback.set_model(model)
        model.stop_training = False
        callback.on_epoch_end(0)
        assert model.stop_training is stops


def histories(folder, figures):
    for number, one in enumerate(figures):
        state = folder / f"trial_{number}" / "checkpoint" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"history": [{"val_loss": value} for value in one]}))


@pytest.mark.parametrize(
    ("own", "stopped_at"),
    [
        # Means of the others up to the second epoch are 3, 5, 7 and 9, so that their median is 6.
        ([9.0, 6.5], 2),
        ([9.0, 6.0], None),
        ([5.0, 99.0], None),  # Its best counts.
    ],
)
def test_a_trial_worse_than_the_median_of_the_others_means_is_stopped(tmp_path, own, stopped_at):
    histories(tmp_path, [[4.0, 2.0], [6.0, 4.0, 0.0], [8.0, 6.0], [10.0, 8.0], [1.0]])
    rule = MedianStopping(tmp_path, "trial_9", "val_loss", "min")
    rule.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    rule.model.stop_training = False
    rule.on_train_begin()
    for epoch, value in enumerate(own):
        rule.on_epoch_end(epoch, {"val_loss": value})
    assert rule.stopped_at == stopped_at
    assert rule.model.stop_training is (stopped_at is not None)


def test_few_trials_stop_none(tmp_path):
    histories(tmp_path, [[1.0, 1.0]] * 3)
    rule = MedianStopping(tmp_path, "trial_9", "val_loss", "min")
    rule.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    rule.on_train_begin()
    for epoch in range(2):
        rule.on_epoch_end(epoch, {"val_loss": 99.0})
    assert rule.stopped_at is None


def test_a_worker_that_is_killed_loses_its_trial_alone(searching, tmp_path):
    ran = run(tmp_path, workers=2, die_at="1:2")
    assert ran.returncode == 0, ran.stderr
    tuner = searching.fit_line(tmp_path)  # Nothing is left to do.
    table = trials_table(tuner)
    assert table.height == 4
    assert table.filter(pl.col("status") == "failed").select("trial", "reason").rows() == [
        ("1", "its worker was killed by SIGKILL")
    ]
    done = table.filter(pl.col("status") == "completed")
    assert sorted(done["trial"]) == ["0", "2", "3"]
    assert (done["epochs"] == 3).all()
    assert sorted(diary(tmp_path)) == sorted([f"{t}:{e}" for t in (0, 2, 3) for e in (1, 2, 3)] + ["1:1", "1:2"])


def test_workers_that_cannot_begin_end_the_search_with_what_they_said(searching, tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such data')"]
    with pytest.raises(
        RuntimeError, match=r"worker-\d ended with status 1 without a trial; its log .* ends: no such data"
    ):
        searching.fit_line(tmp_path, workers=2, worker_command=command)


@pytest.mark.slow
def test_a_chief_and_its_workers_are_started_by_the_environment(searching, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    started = {
        name: subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "1"],
            env={**os.environ, **address, "KERASTUNER_TUNER_ID": name, "DIE_AT": "1:2" if name == "worker-0" else ""},
        )
        for name in ("chief", "worker-0")
    }
    assert started["worker-0"].wait(120) == -signal.SIGKILL
    again = {**os.environ, **address, "KERASTUNER_TUNER_ID": "worker-0"}
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "1"], env=again, check=True, timeout=120)
    assert started["chief"].wait(30) == 0
    assert diary(tmp_path) == [
        "0:1",
        "0:2",
        "0:3",
        "1:1",
        "1:2",
        "1:2",
        "1:3",
        "2:1",
        "2:2",
        "2:3",
        "3:1",
        "3:2",
        "3:3",
    ]
    assert trials_table(searching.fit_line(tmp_path))["status"].to_list() == ["completed"] * 4


def test_a_part_of_the_addresses_is_refused(searching, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(ValueError, match="a search on several machines needs .* Missing: KERASTUNER_ORACLE_PORT"):
        searching.fit_line(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": "sklearn"}, "`tuner` 'sklearn' tunes scikit-learn's estimators on folds of rows; a meta-learner is"),
        ({"tuner": "tpe"}, "`tuner` must be one of random, grid, bayesian, hyperband. Received: tuner='tpe'"),
        ({"trials": 0}, "`trials` must be at least 1. Received: trials=0"),
        ({"epochs": 0}, "`epochs` must be at least 1. Received: epochs=0"),
        ({"workers": 0}, "`workers` must be at least 1. Received: workers=0"),
        ({"workers": 2}, "`worker_command` must be given with several workers"),
        ({"options": {"max_trials": 2}}, "`options` of the tuner: `max_trials` is told by `trials`."),
        ({"options": {"factory": 2}}, "`options` of the tuner: .*unexpected keyword argument 'factory'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(searching, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        searching.fit_line(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_oracle_of_several_objectives_is_refused(searching, tmp_path):
    objective = [kt.Objective("loss", "min"), kt.Objective("val_loss", "min")]
    with pytest.raises(ValueError, match="`oracle` must have one objective, by name. Received: MultiObjective"):
        search(searching.build, objective=objective, folder=tmp_path, tuner="random", trials=1)


def test_a_bayesian_search_of_few_trials_is_not_all_at_random():
    assert make_oracle("bayesian", OBJECTIVE, trials=20, epochs=1).num_initial_points == 5
    assert make_oracle("bayesian", OBJECTIVE, trials=4, epochs=1).num_initial_points == 3
    chosen = make_oracle("bayesian", OBJECTIVE, trials=20, epochs=1, options={"num_initial_points": 9})
    assert chosen.num_initial_points == 9


class Planted(kt.HyperModel):
    """No model to speak of: its loss depends on one of two names, by a formula."""

    def build(self, hp):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    def fit(self, hp, model, *arguments, callbacks=(), epochs=1, **options):
        found = self.values(hp)
        loss = (math.log10(found["inner"]) + 1) ** 2 + 0.001 * math.log10(found["outer"])
        callbacks = keras.callbacks.CallbackList(callbacks, model=model)
        callbacks.on_train_begin()
        for epoch in range(epochs):
            callbacks.on_epoch_end(epoch, {"loss": 1.0, "val_loss": loss / (epoch + 1)})


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    from tfmetarec.tuning import MetaHyperModel, Range

    class Both(Planted, MetaHyperModel):
        pass

    space = {"inner": Range(1e-3, 10.0, log=True), "outer": Range(1e-4, 1e-1, log=True)}
    hypermodel = Both(None, None, space=space, defaults={"inner": 1.0, "outer": 1e-3})
    folder = tmp_path_factory.mktemp("planted") / "search"
    return search(hypermodel, objective=OBJECTIVE, folder=folder, tuner="bayesian", trials=14, epochs=2, prune=False)


def test_a_bayesian_search_comes_near_the_planted_optimum(planted):
    assert abs(math.log10(best_trial(planted).hyperparameters["inner"]) + 1) < 0.2


def test_the_forest_finds_what_matters(planted):
    found = importance(planted)
    assert found["name"].to_list() == ["inner", "outer"]
    assert found["importance"][0] > 0.6
    assert found["importance"].sum() == pytest.approx(1)
    assert found.equals(importance(planted))


def test_every_picture_is_drawn(planted, tmp_path):
    made = drawings(planted, ("inner", "outer"))
    assert list(made) == ["objective", "rates", "importance", "learning_curves"]
    assert all(drawing.alt.endswith(".") for drawing in made.values())
    for file in save_all(made, tmp_path):
        assert "<svg" in file.read_text()
        assert file.with_suffix(".png").stat().st_size > 5000


def test_tensorboard_gets_values_and_curves(planted, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    write_hparams(planted, tmp_path)
    write_hparams(planted, tmp_path)  # Writes nothing twice.
    best = best_trial(planted)
    folder = tmp_path / f"trial_{best.trial_id}"
    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    logged = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("val_loss")]
    assert logged == pytest.approx([epoch["val_loss"] for epoch in epochs_of(planted, best)], rel=1e-6)
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
