"""The benchmark of searches: what its tables are made of, and that the committed figures are of a full run."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras_tuner as kt
import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[2]

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
    tuning = importlib.import_module("benchmarks.tuning")


def searched(monkeypatch, seconds, scores, direction="max"):
    """A search whose trials ended in the order c, a, b."""
    trials = {name: SimpleNamespace(score=score) for name, score in zip("abc", scores, strict=True)}
    oracle = SimpleNamespace(end_order=["c", "a", "b"], trials=trials, objective=kt.Objective("val_x", direction))
    table = pl.DataFrame({"trial": ["a", "b", "c"], "seconds": seconds})
    monkeypatch.setattr(tuning, "trials_table", lambda _: table)
    return SimpleNamespace(oracle=oracle)


def test_time_is_that_of_all_workers_divided_by_them(monkeypatch):
    tuner = searched(monkeypatch, [10.0, 20.0, 30.0], [0.1, 0.3, 0.2])
    assert tuning.seconds_of(tuner).tolist() == [15.0, 20.0, 30.0]
    killed = searched(monkeypatch, [10.0, None, 30.0], [0.1, None, 0.2])
    assert tuning.seconds_of(killed).tolist() == [15.0, 20.0, 20.0]


def test_the_best_so_far_counts_what_had_ended(monkeypatch):
    tuner = searched(monkeypatch, [10.0, 20.0, 30.0], [0.1, 0.3, 0.2])
    assert tuning.best_after(tuner, 20.0) == 0.2
    assert tuning.best_after(tuner, 30.0) == 0.3
    assert np.isnan(tuning.best_after(tuner, 14.0))
    assert tuning.best_after(searched(monkeypatch, [10.0, 20.0, 30.0], [0.1, 0.3, None], "min"), 30.0) == 0.1


def test_names_that_are_searched_are_in_every_space():
    from tfmetarec import experiment

    for case in tuning.cases(SimpleNamespace(quick=False, data=Path("/nowhere"))):
        assert set(experiment.search_space(case.config)[1]) == set(tuning.NAMES)
        assert "nowhere" not in json.dumps(tuning._without_paths(case.config))


@pytest.mark.slow
def test_the_benchmark_runs_quickly(tmp_path):
    out = tmp_path / "tuning.json"
    command = [sys.executable, "-m", "benchmarks.tuning", "--quick", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "a quick run: these figures mean nothing" in ran.stdout
    assert not out.with_suffix(".parts").exists()


def test_the_committed_figures_are_of_a_full_run_and_say_truly_what_was_met():
    result = json.loads((ROOT / "benchmarks" / "results" / "tuning.json").read_text())
    assert result["quick"] is False
    assert set(result["config"]["experiments"]) == {"completejourney", "ml-1m"}
    for data in result["config"]["experiments"]:
        searches = {row["search"]: row for row in result["figures"][f"{data}: searches, on validation users"]}
        assert set(searches) == set(tuning.SEARCHES)
        assert searches["hyperband"]["trials"] == searches["bayesian"]["trials"] == tuning.TRIALS
        gains = {row["search"]: row for row in result["figures"][f"{data}: gains over the committed settings"]}
        (target,) = [one for one in result["targets"] if one["name"].startswith(f"{data}: ")]
        chosen = target["name"].split("gain of ")[1].split("'s best")[0]
        assert target["value"] == gains[chosen]["test_low"]
        assert target["met"] is (target["value"] >= target["bound"])
