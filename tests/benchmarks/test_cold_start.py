"""The cold-start benchmark keeps its protocol, takes other data, and runs; its figures are not judged here."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr

ROOT = Path(__file__).parents[2]


def imported(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])  # `benchmarks` is not part of the installed package.
        return importlib.import_module(f"benchmarks.{name}")


cold_start, choices, ratings = (imported(name) for name in ("cold_start", "cold_start_choices", "cold_start_ratings"))


@pytest.fixture(scope="module")
def purchases(tmp_path_factory):
    made = tmr.data.load("synthetic", n_users=90, n_items=120, interactions_per_user=24, seed=0)
    folder = tmp_path_factory.mktemp("own")
    made.table.drop("label", strict=False).write_csv(folder / "purchases.csv")
    made.items.select("item_id", "group").write_csv(folder / "items.csv")
    (folder / "own.yaml").write_text(
        "name: own\nfeedback: implicit\n"
        "interactions: {path: purchases.csv, user_id: user_id, item_id: item_id}\n"
        "items: {path: items.csv, item_id: item_id, features: {group: category}}\nduplicates: first\n"
    )
    return folder / "own.yaml"


def test_the_protocol_of_purchases_is_that_of_the_whole_warm_part():
    data = tmr.data.load("completejourney")
    case = choices.problem(data)
    ids = np.sort(data.table["user_id"].unique().to_numpy())
    cold = np.random.default_rng(0).permutation(ids)[: int(0.2 * len(ids))]
    assert set(case.split.test.table["user_id"].unique()) == set(cold.tolist())
    assert case.vocabulary.n_items - 1 == 15_164
    support, taken = choices.asked(case.split.test, case)
    assert len(taken) == 434 * len(choices.SHOTS)
    assert sorted(set(support.length.tolist())) == list(choices.SHOTS)


def test_a_mapping_of_ones_own_files_with_shorter_histories_runs_and_can_be_interrupted(
    purchases, tmp_path, monkeypatch
):
    out = tmp_path / "own.json"
    arguments = ["--quick", "--data", str(purchases), "--learners", "Ridge", "--seeds", "2", "--out", str(out)]
    predictions = ["--predictions", str(tmp_path / "kept")]
    measured, asked = choices.measured, []

    def once(*given):
        if asked:
            raise KeyboardInterrupt
        asked.append(given)
        return measured(*given)

    monkeypatch.setattr(choices, "measured", once)
    with pytest.raises(KeyboardInterrupt):
        cold_start.main([*arguments, *predictions])
    kept = {file.name for file in out.with_suffix(".parts").iterdir()}
    assert kept == {"options.json", "own-0-users.parquet"}
    monkeypatch.setattr(choices, "measured", measured)
    assert cold_start.main([*arguments, *predictions]) == 0
    assert not out.with_suffix(".parts").exists()
    found = json.loads(out.read_text())
    table = found["figures"]["recall@20, means over users and seeds"]
    assert [row["learner"] for row in table] == [*choices.FLOORS, choices.EARLY, "Ridge", "mixture"]
    assert set(table[0]) >= {"K=0", "K=1", "mean"}
    kept = pl.read_parquet(tmp_path / "kept" / "own-0.parquet")
    assert {"learner", "K", "user_id", "item_id", "score", "relevant"} <= set(kept.columns)


def test_states_of_ratings_are_judged_by_means_and_medians(tmp_path):
    made_up = {"n_users": 150, "n_items": 150, "n_groups": 5, "interactions_per_user": 70, "feedback": "explicit"}
    case = ratings.problem(tmr.data.load("synthetic", **made_up, seed=0))
    assert set(case.split.parts) == {"train", *ratings.STATES}
    train, cold = (set(case.split[part].table["user_id"].unique()) for part in ("train", "user_cold"))
    assert not train & cold
    budget = ratings.Budget(2, True)
    names = ["Ridge on factors", "set encoder on factors"]
    chosen = ratings.choose(case, names, budget, print)
    assert list(chosen.gates) == ["user_cold", "new items"]  # A tenth of 70 ratings is too little to be asked about.
    known, held = set(case.held["warm"].table["user_id"]), case.held.train.table
    assert known <= set(held["user_id"])
    assert len(case.held["warm"]) == pytest.approx(0.1 * (len(case.held["warm"]) + len(held)), rel=0.1)
    floors = ratings.Floors.of(case.split.train, print, quick=True)
    made = ratings.measured(case, floors, names, chosen, budget, 0, lambda text: None, True)
    rows = ratings.summary(made["users"])
    names = {row["learner"] for row in rows}
    assert {"global mean", "MF fold-in", "mixture", "mixture as medians", "item+user bias as medians"} <= names
    one = (
        made["predictions"]
        .filter((pl.col("learner") == "global mean") & (pl.col("support") == "all"))
        .row(0, named=True)
    )
    by_hand = np.abs(np.array(one["score"]) - np.array(one["label"])).mean()
    case_ = pl.col("user_id") == one["user_id"], pl.col("learner") == "global mean", pl.col("support") == "all"
    assert made["users"].filter(*case_, pl.col("state") == one["state"])["mae"][0] == pytest.approx(by_hand, abs=1e-5)


def test_what_was_kept_for_other_options_is_not_taken_up(tmp_path):
    arguments = ["--quick", "--out", str(tmp_path / "own.json"), "--learners"]
    read = [
        cold_start.report.read_options("cold_start", "", [*arguments, name], more=cold_start.MORE)
        for name in ("MAML", "Ridge")
    ]
    cold_start._begin(read[0])
    (read[0].parts / "own-0-users.parquet").touch()
    cold_start._begin(read[0])
    assert (read[0].parts / "own-0-users.parquet").exists()
    cold_start._begin(read[1])
    assert not (read[1].parts / "own-0-users.parquet").exists()


def test_a_name_without_a_folder_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TFMETAREC_TEST_DATA", raising=False)
    with pytest.raises(tmr.data.DataError, match="`--data ml-1m` needs a folder: give its path"):
        cold_start.main(["--quick", "--data", "ml-1m"])


def tables(page: Path) -> dict[str, list[dict[str, str]]]:
    """The tables of a page of Markdown by their first heading: rows of cells, without bold."""
    found: dict[str, list[dict[str, str]]] = {}
    head: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if not head:
            head = cells
        elif set(line) - set("|- :"):
            found.setdefault(head[0], []).append(dict(zip(head, cells, strict=True)))
    return found


def short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


@pytest.mark.parametrize("page", ["README.md", "docs/cold_start.md"])
def test_tables_of_choices_are_the_committed_figures(page):
    figures = json.loads((ROOT / "benchmarks/results/cold_start.json").read_text())["figures"]
    written = {name: rows for name, rows in tables(ROOT / page).items() if name in ("recall@20", "ndcg@20")}
    written.pop("recall@20", None) if page == "README.md" else None  # There it is the table of the quickstart.
    assert "ndcg@20" in written
    for metric, rows in written.items():
        measured = {row["learner"]: row for row in figures[f"{metric}, means over users and seeds"]}
        assert [row[metric] for row in rows] == list(measured)
        for row in rows:
            of = measured[row.pop(metric)]
            assert row == {name: short(of[name], 4) for name in row}


def test_tables_of_ratings_are_the_committed_figures():
    figures = json.loads((ROOT / "benchmarks/results/cold_start-ml-1m.json").read_text())["figures"]
    measured = {(row["state"], row["support"], row["learner"]): row for row in figures["Four states"]}
    written = tables(ROOT / "docs/cold_start.md")
    for support in ("all", "5"):
        heading = f"MAE / RMSE / nDCG@5, support {support}"
        rows = written[heading]
        assert [row[heading] for row in rows] == list(dict.fromkeys(learner for _, _, learner in measured))
        for row in rows:
            for state in ratings.STATES:
                of = measured[state, support, row[heading]]
                said = " / ".join(short(of[metric], 3) for metric in ratings.METRICS)
                assert row[state.replace("_", " ")] == said


def test_choices_are_made_on_the_users_who_came_last():
    users = np.repeat(np.arange(10), 3)
    table = pl.DataFrame({"user_id": users, "item_id": np.tile([1, 2, 3], 10), "label": 3.0 + users % 2})
    table = table.with_columns(timestamp=pl.Series((users * 7) % 10 * 100 + np.tile([0, 1, 2], 10)))
    items = pl.DataFrame({"item_id": [1, 2, 3], "year": [1990.0, 1991.0, 1999.0]})
    train = tmr.data.Interactions.from_frames(table, items=items, feedback="explicit")
    held = ratings.zero_shot.validation(train, latest=True)
    came_last = {7, 4}  # At 900 and at 800, a fifth of ten.
    assert set(held["user_cold"].table["user_id"]) == came_last
    assert set(held["both_cold"].table["user_id"]) == came_last
    assert set(held["both_cold"].table["item_id"]) == {3}
    assert not came_last & set(held.train.table["user_id"])
