"""The benchmarks run, measure what they say, and keep their rules; what they measured is not judged here."""

import importlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

import tfmetarec as tmr

ROOT = Path(__file__).parents[2]
NAMES = ("input_pipeline", "meta_epoch", "meta_training")


def imported(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
        return importlib.import_module(f"benchmarks.{name}")


report, input_pipeline, meta_epoch, meta_training = (imported(name) for name in ("report", *NAMES))


@pytest.fixture(scope="module")
def purchases():
    return tmr.data.load("synthetic", n_users=60, n_items=40, noise=0.1, interactions_per_user=9, seed=3)


@pytest.fixture(scope="module")
def episodes(purchases):
    vocabulary = tmr.data.Vocabulary.fit(purchases)
    return tmr.tasks.user_episodes(
        purchases, vocabulary, support=(0, 5), query=4, tasks_per_batch=6, negatives=30, seed=5
    )


def model(episodes):
    """Without dropout, so that two ways to compute a gradient see the same model."""
    return tmr.models.TwoTower(episodes.vocabulary, 8, dropout=0.0, id_dropout=0.0, seed=1)


def first(episodes):
    return next(iter(episodes.dataset(batches=1)))


def dense(gradients):
    return [np.asarray(tf.convert_to_tensor(gradient)) for gradient in gradients]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def finish(tmp_path, targets, *, quick=False, figures=None):
    """What `finish` returns, prints and writes."""
    options = report.Options("made_up", quick, 2, None, tmp_path / "made_up.json")
    printed = io.StringIO()
    status = report.finish(
        options,
        config={"width": (1, 2)},
        figures=figures or {"a title": [{"case": "one", "speed": 1.23456789}]},
        targets=targets,
        console=Console(file=printed, width=40),
    )
    return status, printed.getvalue().splitlines(), json.loads(options.out.read_text())


# -- the rules that every benchmark keeps ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "rule", "met"),
    [
        (3.0, "at least", True),
        (2.999, "at least", False),
        (3.0, "at most", True),
        (3.001, "at most", False),
        (math.nan, "at least", False),
        (math.nan, "at most", False),
    ],
)
def test_a_bound_itself_meets_a_target_and_nan_never_does(value, rule, met):
    assert report.Target("speed", value, rule, 3.0).met is met


def test_a_full_run_that_misses_a_target_names_it_on_its_last_line_and_fails(tmp_path):
    targets = [
        report.Target("speed", 4.0, "at least", 3.0),
        report.Target("memory of something with a long name", 12.5, "at most", 10.0),
    ]
    status, printed, written = finish(tmp_path, targets)
    assert status == 1
    assert printed[-1] == (
        "targets: 1 met, 1 missed (memory of something with a long name is 12.5, must be at most 10)"
    )
    assert [target["met"] for target in written["targets"]] == [True, False]


def test_a_full_run_that_meets_its_targets_succeeds(tmp_path):
    status, printed, _ = finish(tmp_path, [report.Target("speed", 4.0, "at least", 3.0)])
    assert (status, printed[-1]) == (0, "targets: 1 met, 0 missed")


def test_a_quick_run_says_that_its_figures_mean_nothing_and_never_fails(tmp_path):
    status, printed, written = finish(tmp_path, [report.Target("speed", 1.0, "at least", 3.0)], quick=True)
    assert status == 0
    assert "a quick run: these figures mean nothing" in printed
    assert printed[-1].startswith("targets: 0 met, 1 missed (speed")
    assert written["quick"] is True


def test_the_file_holds_config_seeds_versions_machine_and_figures(tmp_path):
    _, _, written = finish(tmp_path, [])
    assert written["config"] == {"width": [1, 2]}
    assert written["seeds"] == [0, 1]
    assert written["versions"]["tensorflow"] == tf.__version__
    assert written["versions"]["tfmetarec"] == tmr.__version__
    assert written["machine"]["cores"] >= 1
    assert written["figures"] == {"a title": [{"case": "one", "speed": 1.2346}]}


def test_a_figure_that_is_no_number_is_written_as_null(tmp_path):
    rows = [{"case": "one", "speed": math.nan}, {"case": "two", "speed": math.inf}]
    _, _, written = finish(tmp_path, [], figures={"a title": rows})
    assert [row["speed"] for row in written["figures"]["a title"]] == [None, None]


def test_the_folder_of_the_file_is_made_before_anything_is_measured(tmp_path):
    options = report.read_options("x", "", ["--out", str(tmp_path / "deep" / "x.json")])
    assert options.out.parent.is_dir()


def test_the_rows_of_several_seeds_become_medians_between_their_extremes():
    ratios = [(1.0, 0.8, 1.1), (1.2, 0.9, 1.9), (3.0, 0.7, 3.5)]
    rows = [
        {"learner": "MAML", "ratio_to_plain": middle, "lowest_ratio": low, "highest_ratio": high, "compile_s": None}
        for middle, low, high in ratios
    ]
    assert report.merged(rows) == {
        "learner": "MAML",
        "ratio_to_plain": 1.2,
        "lowest_ratio": 0.7,
        "highest_ratio": 3.5,
        "compile_s": None,
    }


def test_a_quick_run_does_not_write_where_the_committed_figures_are():
    quick = report.read_options("meta_epoch", "", ["--quick"])
    full = report.read_options("meta_epoch", "", [])
    assert full.out == ROOT / "benchmarks" / "results" / "meta_epoch.json"
    assert report.RESULTS not in quick.out.parents
    quick.out.parent.rmdir()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0"], "`--seeds` must be at least 1. Received: --seeds 0"),
        (["--data", "no/such/folder"], "`--data` must exist. Received: --data no/such/folder"),
        (["--quick", "--out", str(ROOT / "benchmarks/results/x.json")], "`--out` must not be the committed file"),
        (["--out", str(ROOT)], "`--out` must be a file in a folder that can be written. Received: --out"),
        (["--out", str(ROOT / "pyproject.toml" / "x.json")], "`--out` must be a file in a folder that can be"),
    ],
)
def test_options_out_of_range_are_refused_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as raised:
        report.read_options("x", "", arguments)
    assert raised.value.code == 2
    assert sentence in capsys.readouterr().err


# -- what is measured is what is said ------------------------------------------------------------------------


def test_the_plain_step_descends_the_loss_that_fine_tuning_descends(episodes):
    episode = first(episodes)
    learner = tmr.meta.FineTuning(model(episodes))
    plain = meta_epoch.PlainTraining(model(episodes))
    with tf.GradientTape() as tape:
        loss = plain.episode_loss(episode, training=True)
    gradients = tape.gradient(loss, [variable.value for variable in plain.trainable_variables])
    _, expected, _ = learner.meta_gradients(episode)
    for gradient, other in zip(dense(gradients), dense(expected), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6)


def test_maml_in_a_loop_over_tasks_has_the_loss_and_the_gradients_of_maml(episodes):
    episode, settings = first(episodes), {"inner_steps": 2, "inner_learning_rate": 0.5, "shrinkage": 3.0}
    loss, gradients, scores = tmr.meta.MAML(model(episodes), **settings).meta_gradients(episode)
    own_loss, own_gradients, own_scores = meta_epoch.LoopedMAML(model(episodes), **settings).meta_gradients(episode)
    assert float(own_loss) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(own_scores, scores, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(dense(own_gradients), dense(gradients), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [meta_epoch.PLAIN, meta_epoch.LOOP])
def test_a_yardstick_trains_once_through_its_batches_and_learns(episodes, name):
    learner = meta_epoch.trainer(name, episodes.vocabulary, seed=0)
    before = [variable.numpy().copy() for variable in learner.trainable_variables]
    assert len(meta_epoch.train(learner, episodes.dataset(batches=2))) == 2
    assert all((value != variable.numpy()).any() for value, variable in _heads(before, learner))


def _heads(before, learner):
    pairs = zip(before, learner.trainable_variables, strict=True)
    return [(value, variable) for value, variable in pairs if "head" in variable.path and "kernel" in variable.path]


def test_a_replayed_stream_hands_over_the_rows_that_it_was_given(episodes):
    rows = [episodes.sample(7), episodes.sample(8)]
    given = list(input_pipeline.replayed(episodes, rows).dataset(batches=3).as_numpy_iterator())
    for handed, expected in zip(given, [rows[0], rows[1], rows[0]], strict=True):
        assert handed.keys() == expected.keys()
        assert all((handed[name] == expected[name]).all() for name in expected)


def test_the_table_of_speeds_compares_within_a_turn(episodes):
    case = input_pipeline.Case("made up", episodes, None)
    turns = [
        {"pipeline": 0.001, "trainer": 0.004, "fed": 0.005},
        {"pipeline": 0.002, "trainer": 0.010, "fed": 0.010},
        {"pipeline": 0.002, "trainer": 0.004, "fed": 0.008},
    ]
    row = input_pipeline.speeds(case, turns)
    assert row["pipeline_over_trainer"] == pytest.approx(4.0)  # The middle of 4, 5 and 2.
    assert (row["lowest"], row["highest"]) == pytest.approx((2.0, 5.0))
    assert row["pipeline_per_s"] == pytest.approx(3000)  # 6 tasks in 2 ms.
    assert row["fed_over_unfed"] == pytest.approx(0.8)  # The middle of 0.8, 1 and 0.5.


def test_data_with_ratings_are_refused_where_purchases_are_needed(tmp_path):
    ratings = tmr.data.load("synthetic", n_users=20, n_items=12, feedback="explicit", interactions_per_user=5)
    ratings.to_parquet(tmp_path / "ratings")
    done = run("meta_epoch", "--quick", "--data", str(tmp_path / "ratings"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: `--data` must hold implicit feedback. Received: Inter")


# -- the runs themselves -------------------------------------------------------------------------------------


def checked(name: str, tmp_path: Path, *arguments: str) -> dict:
    """The figures of a quick run, after checking that it kept the rules."""
    committed = ROOT / "benchmarks" / "results" / f"{name}.json"
    before = committed.read_bytes() if committed.exists() else None
    done = run(name, "--quick", "--out", str(tmp_path / "out.json"), *arguments)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    written = json.loads((tmp_path / "out.json").read_text())
    met = [target["met"] for target in written["targets"]]
    assert last.startswith(f"targets: {sum(met)} met, {len(met) - sum(met)} missed")
    assert (committed.read_bytes() if committed.exists() else None) == before
    return written["figures"]


def test_input_pipeline_runs_quickly(tmp_path):
    figures = checked("input_pipeline", tmp_path)
    speeds, stages = figures.values()
    assert [row["data"] for row in speeds] == ["completejourney", "synthetic, 2,000 users"]
    for row in speeds:
        assert row["lowest"] <= row["pipeline_over_trainer"] <= row["highest"]
        assert row["fed_trainer_per_s"] > 0
    for row in stages:
        assert min(row["sampling_ms"], row["look_up_ms"], row["hand_over_ms"]) > 0


@pytest.mark.slow
def test_meta_epoch_runs_quickly_on_data_of_ones_own(tmp_path):
    made_up = tmr.data.load("synthetic", n_users=200, n_items=100, interactions_per_user=20)
    made_up.to_parquet(tmp_path / "made_up")
    (rows,) = checked("meta_epoch", tmp_path, "--data", str(tmp_path / "made_up")).values()
    by_name = {row["learner"]: row for row in rows}
    assert list(by_name) == ["plain", "MAML", "Reptile", "MAML, loop over tasks"]
    assert by_name["plain"]["ratio_to_plain"] == 1.0
    assert by_name["MAML"]["compile_s"] > 0
    assert by_name["MAML"]["peak_growth_mb"] > 0
    assert by_name["MAML, loop over tasks"]["compile_s"] is None


@pytest.mark.slow
def test_meta_training_runs_quickly_and_without_peers(tmp_path):
    steps, tables = checked("meta_training", tmp_path).values()
    ways = [row["way"] for row in steps]
    assert ways[:2] == ["tfmetarec MAML", "plain Keras step"]
    assert steps[0]["ratio"] == 1.0
    assert steps[1]["lowest_ratio"] <= steps[1]["ratio"] <= steps[1]["highest_ratio"]
    assert [row["rows"] for row in tables] == [1_000, 10_000]


def test_ways_that_do_not_do_the_same_are_found_out():
    losses = {meta_training.OURS: [1.0, 0.5], "another": [1.0, 0.5004]}
    meta_training.check_losses(0, losses)
    with pytest.raises(RuntimeError, match="another disagrees at D128 H64, 1 step, 32 tasks"):
        meta_training.check_losses(0, {**losses, "another": [1.0, 0.51]})


@pytest.mark.slow
@pytest.mark.serving
def test_serving_runs_quickly(tmp_path):
    search, how, requests = checked("serving", tmp_path).values()
    assert [row["request"] for row in search] == ["bare", "adapt_and_recommend", "adapt_and_recommend, two-stage"]
    assert how[0]["search"].startswith("two stages: ")
    assert {row["protocol"] for row in requests} == {"gRPC", "REST"}
    for row in (*search, *requests):
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
        assert row["lowest_ratio"] <= row["ratio"] <= row["highest_ratio"]


@pytest.mark.parametrize("name", [*NAMES, "serving", "serving_load"])
def test_the_committed_figures_are_of_a_full_run_and_say_truly_what_was_met(name):
    written = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert (written["benchmark"], written["quick"]) == (name, False)
    for target in written["targets"]:
        fields = (target[field] for field in ("name", "value", "rule", "bound"))
        assert report.Target(*fields).met is target["met"]
