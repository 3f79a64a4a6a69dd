"""The cross-domain benchmark measures what it says; what it measured is not judged here."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tfmetarec.data import DataError, Interactions
from tfmetarec.transfer.cross_domain import Domains, judged

ROOT = Path(__file__).parents[2]
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
    benchmark = importlib.import_module("benchmarks.cross_domain")


def interactions(rows, feedback="explicit"):
    columns = ["user_id", "item_id", "label"][: len(rows[0])]
    return Interactions.from_frames(pl.DataFrame(rows, schema=columns, orient="row"), feedback=feedback)


@pytest.fixture
def domains():
    source = interactions([(1, 10, 5.0), (1, 11, 4.0), (2, 10, 3.0)])
    return Domains.of(source, interactions([(2, 20, 2.0), (3, 20, 4.0), (3, 21, 5.0)]))


def test_the_bias_floor_is_the_mean_plus_the_items_bias_plus_the_users_in_the_source(domains):
    users = judged(domains, interactions([(1, 20, 1.0), (1, 99, 2.0)]))
    asked = benchmark.asked_of(domains, users)
    assert asked.user.tolist() == [1, 1]
    assert asked.label.tolist() == [1, 2]
    found = benchmark.bias_prediction(domains, domains.source_ratings.label, asked, 2.0, 3.0)
    # Source: mean 4, item 10 (1 - 1) / 4, item 11 0 / 3; user 1 (1 + 0) / 5. Target: mean 11 / 3, item 20 below it.
    item = (2 + 4 - 2 * 11 / 3) / 4
    np.testing.assert_allclose(found, [11 / 3 + item + 1 / 5, 11 / 3 + 1 / 5], rtol=1e-6)


def test_errors_take_the_median_for_the_absolute_and_the_mean_for_the_squared_error():
    asked = benchmark.Asked(np.array([1, 1, 4]), np.array([1, 2, 3]), np.array([5.0, 3.0, 1.0]))
    value = benchmark.Predicted(np.array([6.0, 2.0, 1.0]), np.array([4.0, 3.0, 0.0]))
    errors = benchmark.rating_errors(value, asked, 1.0, 5.0)
    assert errors == pytest.approx({"mae": 1 / 3, "rmse": np.sqrt(1 / 3), "mae_of_mean": 1 / 3})
    absolute, squared = benchmark.user_errors([(value, asked), (value, asked)], 1.0, 5.0)
    np.testing.assert_allclose(absolute, [0.5, 0.0])
    np.testing.assert_allclose(squared, [0.5, 0.0])


def test_known_users_are_judged_on_ratings_that_their_support_lacks(domains, monkeypatch):
    test = interactions([(1, 20 + item % 2, 3.0) for item in range(2)])
    seen = {}

    def watched(method, users):
        seen["support"], seen["query"] = users.support, users.item
        return

    monkeypatch.setattr(benchmark, "predicted", watched)
    monkeypatch.setattr(benchmark.np.random, "default_rng", lambda seed: Fixed())
    benchmark.known_users(None, domains, test)
    assert seen["query"].tolist() == [[3]]
    assert seen["support"].item["item_id"].tolist() == [[1, 2, 4]]


class Fixed:
    def random(self, size):
        return np.array([0.05, 0.5])


def test_rankings_are_judged_on_the_targets_own_products():
    source = interactions([(1, 10), (2, 10), (3, 10)], "implicit")
    domains = Domains.of(source, interactions([(2, 20), (2, 21), (3, 22)], "implicit"))
    users = judged(domains, interactions([(1, 22), (1, 20)], "implicit"))
    recall, ndcg = benchmark.ranking_figures(np.array([[3.0, 2.0, 1.0]]), users, domains.target_rows, 1)
    assert (recall.tolist(), ndcg.tolist()) == ([0.5], [1.0])


def test_floors_are_named_once_and_learners_run_for_the_first_seed_alone():
    first, second = (set(benchmark.rating_methods(seed, quick=True)) for seed in (0, 1))
    assert first - second == {"meta-transfer", "pre-training, fine-tuning", "distilled transfer"}
    assert not first & set(benchmark.FLOORS)
    assert not set(benchmark.purchase_methods(quick=True)) & set(benchmark.PURCHASE_FLOORS)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.cross_domain", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_a_full_run_needs_the_ratings(tmp_path):
    with pytest.raises(DataError, match=r"`--data` must be a folder with Douban's book\.parquet and music\.parquet"):
        benchmark.main(["--out", str(tmp_path / "out.json")])


@pytest.mark.slow
def test_it_runs_quickly_on_made_up_data(tmp_path):
    done = run("--quick", "--out", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "a quick run: these figures mean nothing" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    (ratings, _, purchases) = written["figures"].values()
    assert {row["method"] for row in ratings} >= {*benchmark.FLOORS, *benchmark.rating_methods(0, quick=True)}
    assert {row["method"] for row in purchases} == {
        *benchmark.PURCHASE_FLOORS,
        *benchmark.purchase_methods(quick=True),
    }


def test_the_committed_figures_say_truly_what_was_met():
    file = ROOT / "benchmarks" / "results" / "cross_domain.json"
    written = json.loads(file.read_text())
    assert (written["benchmark"], written["quick"], len(written["seeds"])) == ("cross_domain", False, 5)
    for target in written["targets"]:
        kept = (
            target["value"] >= target["bound"] if target["rule"] == "at least" else target["value"] <= target["bound"]
        )
        assert target["met"] is kept
