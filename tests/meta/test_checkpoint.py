import json
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

import tfmetarec as tmr
from tfmetarec.meta import MAML, Checkpoint
from tfmetarec.models import TwoTower

# What the killed process runs, and this one without the kill: dropout and Adam make both kinds of state matter.
RUN = textwrap.dedent(
    """
    import keras
    import tfmetarec as tmr

    def train(folder, epochs, *callbacks):
        data = tmr.data.load("synthetic", n_users=20, n_items=40, interactions_per_user=8, feedback="explicit", seed=0)
        vocabulary = tmr.data.Vocabulary.fit(data)
        episodes = tmr.tasks.user_episodes(
            data, vocabulary, support=(0, 4), query=3, tasks_per_batch=6, steps_per_epoch=3
        )
        model = tmr.models.TwoTower(vocabulary, 4, dropout=0.3, id_dropout=0.3)
        learner = tmr.meta.MAML(model, inner_learning_rate=0.1)
        learner.compile(keras.optimizers.Adam(0.01))
        checkpoint = tmr.meta.Checkpoint(folder)
        options = {"validation_data": episodes, "verbose": 0}
        learner.fit(episodes, epochs=epochs, callbacks=[checkpoint, *callbacks], **options)
        return learner, checkpoint
    """
)
KILLED = textwrap.dedent(
    """
    import os, signal, sys

    class Kill(keras.callbacks.Callback):
        epoch = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == 1 and batch == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    train(sys.argv[1], 4, Kill())
    """
)


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path, values_of):
    space = {}
    exec(RUN, space)
    unbroken, _ = space["train"](tmp_path / "unbroken", 4)
    command = [sys.executable, "-c", RUN + KILLED, str(tmp_path / "killed")]
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(json.loads((tmp_path / "killed" / "state.json").read_text())["history"]) == 1
    resumed, checkpoint = space["train"](tmp_path / "killed", 4)
    assert len(checkpoint.history) == 4
    expected, found = values_of(unbroken), values_of(resumed)
    assert len(found) > len(unbroken.trainable_variables) * 2  # Adam's two slots are among them.
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    other = json.loads((tmp_path / "unbroken" / "state.json").read_text())
    assert json.loads((tmp_path / "killed" / "state.json").read_text()) == other


class Figures(keras.callbacks.Callback):
    """Says what is logged, in place of a real validation."""

    def __init__(self, *figures):
        super().__init__()
        self.figures = figures

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.figures[epoch]


@pytest.fixture(scope="module")
def learner(explicit):
    learner = MAML(TwoTower(explicit.vocabulary, 3))
    learner.compile("sgd")
    return learner


def run(learner, episodes, folder, *figures, **options):
    checkpoint = Checkpoint(folder, **options)
    learner.fit(episodes, epochs=len(figures), steps_per_epoch=1, verbose=0, callbacks=[Figures(*figures), checkpoint])
    return checkpoint


def kept(folder):
    return sorted(path.name for path in folder.glob("*.weights.h5"))


def test_the_best_and_the_last_epoch_are_kept(learner, explicit, tmp_path):
    checkpoint = run(learner, explicit.episodes, tmp_path, 3.0, 1.0, 2.0, 2.5)
    assert checkpoint.best_epoch == 1
    assert kept(tmp_path) == ["epoch-1.weights.h5", "epoch-3.weights.h5"]
    assert checkpoint.best_weights == tmp_path / "epoch-1.weights.h5"
    assert run(learner, explicit.episodes, tmp_path / "max", 3.0, 1.0, 2.0, mode="max").best_epoch == 0
    assert run(learner, explicit.episodes, tmp_path / "none", 3.0, 1.0, monitor=None).best_epoch == 1


def test_the_best_weights_are_those_of_the_best_epoch(learner, explicit, tmp_path):
    class Remember(keras.callbacks.Callback):
        weights = ()

        def on_epoch_end(self, epoch, logs=None):
            self.weights = (*self.weights, [value.copy() for value in learner.get_weights()])

    remember, checkpoint = Remember(), Checkpoint(tmp_path)
    callbacks = [Figures(3.0, 1.0, 2.0), checkpoint, remember]
    learner.fit(explicit.episodes, epochs=3, steps_per_epoch=1, verbose=0, callbacks=callbacks)
    learner.load_weights(checkpoint.best_weights)
    for a, b in zip(learner.get_weights(), remember.weights[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_stops_when_patience_runs_out_and_stays_stopped(learner, explicit, tmp_path):
    figures = (3.0, 1.0, 2.0, 1.5, 0.5, 0.4)
    stopped = run(learner, explicit.episodes, tmp_path, *figures, patience=2)
    assert [epoch["val_loss"] for epoch in stopped.history] == [3.0, 1.0, 2.0, 1.5]
    before = learner.get_weights()
    again = run(learner, explicit.episodes, tmp_path, *figures, patience=2)
    assert again.history == stopped.history
    for a, b in zip(before, learner.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_not_a_number_is_never_the_best(learner, explicit, tmp_path):
    assert run(learner, explicit.episodes, tmp_path, float("nan"), 2.0, float("nan")).best_epoch == 1


def test_more_epochs_continue_where_the_last_ended(learner, explicit, tmp_path):
    run(learner, explicit.episodes, tmp_path, 3.0, 2.0)
    assert len(run(learner, explicit.episodes, tmp_path, 9.0, 9.0, 1.0).history) == 3
    assert [e["val_loss"] for e in json.loads((tmp_path / "state.json").read_text())["history"]] == [3.0, 2.0, 1.0]


def test_clearing_lets_the_next_run_start_anew(learner, explicit, tmp_path):
    checkpoint = run(learner, explicit.episodes, tmp_path / "run", 3.0)
    checkpoint.clear()
    assert not (tmp_path / "run").exists()
    assert checkpoint.restore(learner) == 0


def test_figures_that_are_not_logged_are_refused_by_name(learner, explicit, tmp_path):
    with pytest.raises(
        ValueError, match="`monitor` must be one of the logged figures: loss, val_loss. Received: 'recall'"
    ):
        run(learner, explicit.episodes, tmp_path, 1.0, monitor="recall")


def test_options_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`mode` must be 'min' or 'max'. Received: mode='best'"):
        tmr.meta.Checkpoint(tmp_path, mode="best")
    with pytest.raises(ValueError, match="`patience` must be at least 1. Received: patience=0"):
        tmr.meta.Checkpoint(tmp_path, patience=0)
