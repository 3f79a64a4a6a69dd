"""The page of results: what it says is what the tables say, and a browser shows all of it."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.evaluation import ColdStartTable, Examination, drawing, fairness_gap, slices, user_values
from tfmetarec.evaluation import report as page
from tfmetarec.evaluation.cold_start import summarized
from tfmetarec.evaluation.cold_states import STATES
from tfmetarec.evaluation.examination import worst_slice
from tfmetarec.evaluation.examination_report import examined, sliced

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def table():
    """Forty users: a learner that gains .1 over the floor for the first thirty at K=1 and loses .1 for the others."""
    rows = []
    for user in range(40):
        for k in (0, 1):
            level = 0.3 + 0.2 * k
            gain = 0.0 if k == 0 else 0.1 if user < 30 else -0.1
            rows += [("popularity", k, user, level), ("MAML", k, user, level + gain)]
    columns = ["learner", "K", "user_id", "recall@5"]
    per_user = pl.DataFrame(rows, schema=columns, orient="row").sort(
        "learner", "K", "user_id", descending=[True, False, False]
    )
    return ColdStartTable(summarized(per_user, 0.95, 0), per_user, "implicit", ("3 users were left out",))


def test_the_headline_says_what_the_table_says(table):
    section = page.headline(table, ["MAML"])
    (shown,) = section.tables
    assert shown.columns == ["", "K=0", "K=1"]
    assert [row[0] for row in shown.rows] == ["popularity", "MAML"]
    assert shown.rows[1][2].startswith(".5500 ±")  # .5 + (30 * .1 - 10 * .1) / 40
    assert shown.strong == {1}
    assert shown.bold == {(0, 1), (1, 1), (1, 2)}  # Equal at K=0.
    assert section.text[0] == "3 users were left out"
    assert section.text[1].startswith("K=0: no significant difference between MAML and popularity")
    assert section.text[2].startswith("K=1: MAML is better than popularity by 0.05")


def test_errors_are_better_the_other_way_round(table):
    errors = table.per_user.rename({"recall@5": "mae"})
    explicit = ColdStartTable(summarized(errors, 0.95, 0), errors, "explicit")
    section = page.headline(explicit, ["MAML"])
    assert section.text[1].startswith("K=1: popularity is better than MAML by 0.05")
    assert section.tables[0].bold == {(0, 1), (1, 1), (0, 2)}
    told = page.gains(explicit, "MAML", ["MAML"]).text[0]
    assert told == "At K=1, MAML is better than popularity for 25% of users and worse for 75%."


def test_gains_count_winners_and_losers_at_the_largest_k(table):
    section = page.gains(table, "MAML", ["MAML"])
    assert section.text == ["At K=1, MAML is better than popularity for 75% of users and worse for 25%."]
    assert list(section.drawings) == ["gains"]
    assert page.gains(table, "MAML", ["MAML", "popularity"]).drawings == {}  # Without a floor there is no gain.


def test_slices_name_the_worst_group_and_leave_small_ones_out(table):
    groups = pl.DataFrame(
        {"user_id": range(40), "feature": "age", "group": ["old"] * 10 + ["young"] * 25 + ["rare"] * 5}
    )
    values = user_values(table, ["MAML", "popularity"], 1)
    section = sliced(*slices(values, groups, against="popularity"), "MAML", "popularity", "recall@5", 1)
    (shown,) = section.tables
    # The old ones, of whom all gain, have .6; of the young ones 20 gain and 5 lose: .5 + (20 - 5) * .1 / 25.
    assert [row[:2] + row[3:] for row in shown.rows] == [
        ["age old", "10", ".5000", "+.1000 *"],
        ["age young", "25", ".5000", "+.0600 *"],
    ]
    assert [row[2].split()[0] for row in shown.rows] == [".6000", ".5600"]
    assert section.text[0].startswith("Worst slice of users: age young, recall@5 0.5600 [0.5")
    assert section.text[1] == "Groups with fewer than 10 users are left out, 1 in all."
    assert sliced(pl.DataFrame(), 1, "MAML", None, "recall@5", 1).tables == ()
    alone = sliced(*slices(user_values(table, ["MAML"], 1), groups), "MAML", None, "recall@5", 1)
    assert alone.tables[0].columns == ["group", "users", "MAML"]
    assert alone.tables[0].caption == "recall@5 at K=1, mean over users; of each feature at most the 6 largest groups"


def test_groups_that_are_as_bad_as_the_worst_are_counted(table):
    groups = pl.DataFrame({"user_id": range(40), "feature": "age", "group": ["a"] * 10 + ["b"] * 20 + ["c"] * 10})
    found, _ = slices(user_values(table, ["popularity"], 1), groups)
    told = worst_slice(found, "popularity", "users", "recall@5")
    assert told == "Worst slice of users: age b, recall@5 0.5000 [0.5000, 0.5000] (20 users), and 2 more as low."


def examination(table):
    """Made up: what a page of every part needs."""
    names = ["popularity", "MAML"]
    figures = {"novelty": 8.0, "diversity": 0.5, "coverage": 0.1, "gini": 0.9, "ece": 0.01, "brier": 0.2}
    points = pl.DataFrame({"said": [0.1, 0.3], "happened": [0.1, 0.4], "rows": [5, 5]})
    interval = {"mean": 0.4, "low": 0.3, "high": 0.5, "users": 40}
    groups = pl.DataFrame({"user_id": range(40), "feature": "age", "group": ["old"] * 20 + ["young"] * 20})
    users, few = slices(user_values(table, ["MAML", "popularity"], 1), groups, against="popularity")
    items = users.with_columns(feature=pl.lit("category of a rather long name"), group="group" + pl.lit("s " * 20))
    values = user_values(table, ["MAML"], 1)
    return Examination(
        pl.DataFrame([{"learner": name, **figures} for name in names]).select("learner", *figures),
        pl.concat([points.select(pl.lit(name).alias("learner"), pl.all()) for name in names]),
        users,
        items,
        pl.DataFrame([gap._asdict() for gap in fairness_gap(values, groups)]),
        pl.DataFrame(
            [{"learner": "MAML", "steps": s, "K": k, "metric": "recall@5", **interval} for s in (0, 2) for k in (1, 4)]
        ),
        pl.DataFrame(
            [
                {"state": state, "learner": name, "K": 1, "metric": metric, **interval, "mean": 0.4 + 0.1 * i}
                for state in STATES
                for i, name in enumerate(names)
                for metric in ("recall@5", "ndcg@5")
            ]
        ),
        {
            "K": 1, "metric": "recall@5", "item_metric": "recall@5", "learner": "MAML", "floor": "popularity",
            "few_users": few, "few_items": 3, "positive_rating": None,
        },
    )  # fmt: skip


def test_a_section_for_each_part_of_an_examination(table):
    sections = {section.title: section for section in examined(examination(table), ["MAML"])}
    states = sections["Known and new, users and items"].tables[0]
    assert states.columns == ["", "warm", "user cold", "item cold", "both cold"]
    assert states.rows == [["popularity", *[".4000"] * 4], ["MAML", *[".5000"] * 4]]
    assert states.bold == {(1, 1), (1, 2), (1, 3), (1, 4)}
    assert states.caption == "recall@5 at K=1; users: warm 40, user cold 40, item cold 40, both cold 40"
    assert sections["Groups of users"].text[-1].startswith("Gap by age: young is 0.1 [")
    assert sections["What lists are like"].tables[0].rows[1] == ["MAML", "8.0000", ".5000", ".1000", ".9000"]
    assert sections["What a score is worth"].tables[0].columns == ["", "ECE", "Brier"]
    drawn = [name for section in sections.values() for name in section.drawings]
    assert drawn == ["states", "steps", "slices-users", "slices-items", "reliability"]


def test_parts_that_were_not_found_have_no_section(table):
    found = replace(examination(table), states=pl.DataFrame(), steps=pl.DataFrame(), reliability=pl.DataFrame())
    drawn = [name for section in examined(found, ["MAML"]) for name in section.drawings]
    assert drawn == ["slices-users", "slices-items"]


def test_runs_side_by_side_have_the_best_of_both_in_bold(table):
    (shown,) = page.side_by_side({"a": table, "b": table}).tables
    assert shown.columns == ["run", "learner", "K=0", "K=1"]
    assert [row[:2] for row in shown.rows] == [[r, n] for r in "ab" for n in ("popularity", "MAML")]
    assert {(1, 3), (3, 3)} <= shown.bold
    assert (0, 3) not in shown.bold


def test_runs_judged_by_another_metric_have_a_table_of_their_own(table):
    errors = table.per_user.rename({"recall@5": "mae"}).filter(pl.col("K") == 1)
    explicit = ColdStartTable(summarized(errors, 0.95, 0), errors, "explicit")
    section = page.side_by_side({"a": table, "b": explicit}, ["They differ."])
    assert [shown.caption for shown in section.tables] == [
        "recall@5 after K interactions",
        "mae after K interactions; lower is better",
    ]
    assert [shown.columns for shown in section.tables] == [["run", "learner", "K=0", "K=1"], ["run", "learner", "K=1"]]
    assert section.tables[1].bold == {(0, 2)}  # Of errors the lowest.
    assert section.text == ["They differ."]


def test_columns_of_words_begin_at_the_left_and_long_ones_may_have_lines():
    shown = page.TableOf(
        "", ["a", "b", "c", "d"], [["x", ".1000 ±.0100", "MAML", "-"], ["y", "-", "EASE" * 9, "1e-05"]]
    )
    assert [shown.kind(column) for column in range(4)] == ["", "", "text long", ""]


def test_neighbours_point_the_same_way():
    vectors = np.array([[9.0, 9.0], [1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    found = page.neighbours(vectors, ["?", "a", "b", "c", "d"], [1, 3], most=2)
    assert found.rows == [["a", "b (1.00); c (0.00)"], ["c", "b (0.05); a (0.00)"]]
    every = page.neighbours(vectors, ["?", "a", "b", "c", "d"], [1], most=9)
    assert every.rows == [["a", "b (1.00); c (0.00); d (-1.00)"]]  # Neither itself nor row 0.


class ByRow:
    """Recommends what has the highest row, after the last item met: its neighbours."""

    def adapt(self, support):
        return [
            int(rows[length - 1]) if length else 0
            for rows, length in zip(support.item["item_id"], support.length, strict=True)
        ]

    def score(self, state, item):
        return np.array([-np.abs(item["item_id"] - last) for last in state], float)


def test_the_example_shows_one_user_before_and_after_each_interaction():
    data = tmr.data.load("synthetic", n_users=20, n_items=30, interactions_per_user=5, seed=0)
    vocabulary = tmr.data.Vocabulary.fit(data)
    (shown,) = page.example(ByRow(), data, vocabulary, shots=2).tables
    names = vocabulary.item_names
    assert shown.rows[0][0] == "nothing yet"
    assert shown.rows[0][1] == "; ".join(names[row] for row in (1, 2, 3, 4, 5))  # Names may have commas.
    met = names.index(shown.rows[1][0])
    assert names.index(shown.rows[1][1].split("; ")[0]) in (met - 1, met + 1)
    assert shown.rows[1][0] not in shown.rows[1][1].split("; ")
    (fewer,) = page.example(ByRow(), data, vocabulary, shots=9).tables
    assert len(fewer.rows) == 5  # Nobody has more than five: the last is what would come next.


def test_the_example_names_what_was_rated_and_how():
    data = tmr.data.load("synthetic", n_users=20, n_items=30, interactions_per_user=5, feedback="explicit", seed=0)
    vocabulary = tmr.data.Vocabulary.fit(data)
    (shown,) = page.example(ByRow(), data, vocabulary, shots=2).tables
    own = data.table.filter(pl.col("user_id") == data.table["user_id"].min()).sort("timestamp", maintain_order=True)
    for row, item, label in zip(shown.rows[1:], own["item_id"], own["label"], strict=False):
        assert row[0] == f"{vocabulary.item_names[vocabulary.item_rows([item])[0]]} ({label:g})"
        assert row[0].rsplit(" (", 1)[0] not in row[1].split("; ")


@pytest.fixture(scope="module")
def written(table, tmp_path_factory):
    histories = {"MAML": [{"loss": 2.0, "val_ndcg": 0.1}, {"loss": 1.0, "val_ndcg": 0.2}], "none": []}
    name = "a name beside bars that is much too long for them"
    labels = ("A title that is as wide as the figure, and more", "so many words about what is across, and more", "")
    narrow = drawing.bars(
        "Long names.", [name], {"MAML, distilled, with prototypes, and the rest of it": [1.0], "b": [0.5]}, labels
    )
    long = page.TableOf("Wide", ["", *map(str, range(40))], [["row", *["1.2345"] * 40], ["x" * 90, *["0"] * 40]])
    sections = [
        page.headline(table, ["MAML"]),
        page.gains(table, "MAML", ["MAML"]),
        *examined(examination(table), ["MAML"]),
        page.training(histories),
        page.Section("Nothing"),
        page.Section("<b>Marks</b>", ["5 < 6 & <script>"], [long], {"narrow": narrow}),
    ]
    out = tmp_path_factory.mktemp("page") / "made" / "report.html"
    return page.write_report(out, "A run", [("data", "made up")], sections)


def test_the_page_is_one_file_with_every_figure_and_no_address_elsewhere(written):
    text = written[0].read_text()
    assert [file.name for file in written[1:]] == [
        "adaptation.svg",
        "gains.svg",
        "states.svg",
        "steps.svg",
        "slices-users.svg",
        "slices-items.svg",
        "reliability.svg",
        "training-loss.svg",
        "training-val_ndcg.svg",
        "narrow.svg",
    ]
    assert all(file.with_suffix(".png").exists() for file in written[1:])
    assert re.findall('<figure id="([^"]+)"', text) == [file.stem for file in written[1:]]
    alternatives = re.findall('<svg role="img" aria-label="([^"]+)"', text)
    assert alternatives[1] == "At K=1, MAML is better than popularity for 75% of users and worse for 25%."
    assert len(alternatives) == 10
    assert not re.findall(r'(?:src|href)="https?:', text)
    assert "<h2>Nothing</h2>" not in text
    assert "5 &lt; 6 &amp; &lt;script&gt;" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    for used in re.findall(r'(?:xlink:href="|url\()#([^")]+)', text):
        assert used in ids
    assert "#123457" not in text  # Ink is the page's own.


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package of that name)")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_figure_and_nothing_sticks_out(written, width, tmp_path: Path):
    probe = """<script>addEventListener("load", () => {
      const wide = document.documentElement.scrollWidth - innerWidth;
      const shown = [...document.querySelectorAll("figure svg")].filter(s => s.getBoundingClientRect().height > 100);
      const cut = shown.filter(s => s.getBoundingClientRect().right > innerWidth || [...s.querySelectorAll("text")].some(
        t => t.getBoundingClientRect().right > s.getBoundingClientRect().right + 1
          || t.getBoundingClientRect().left < s.getBoundingClientRect().left - 1));
      document.title = `${wide} ${shown.length} ${cut.length} ${innerWidth}`; });</script>"""
    copy = tmp_path / "page.html"
    # Chromium has no windows narrower than 500 pixels: a frame is as narrow as one likes.
    frame = f'<iframe src="page.html" style="width:{width}px;height:9000px;border:0"></iframe>'
    copy.write_text(written[0].read_text().replace("</body>", probe + "</body>"))
    outer = tmp_path / "outer.html"
    told = "<script>setTimeout(() => { document.body.dataset.told = frames[0].document.title; }, 1500);</script>"
    outer.write_text(f"<body>{frame}{told}</body>")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=4000",
    ]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shot = tmp_path / "page.png"
    command = [str(CHROMIUM), *flags, profile, "--window-size=1400,9000"]
    subprocess.run([*command, f"--screenshot={shot}", outer.as_uri()], check=True, capture_output=True, timeout=120)
    assert shot.stat().st_size > 20_000
    ran = subprocess.run(
        [*command, "--dump-dom", outer.as_uri()], check=True, capture_output=True, text=True, timeout=120
    )
    (found,) = re.findall('data-told="([^"]+)"', ran.stdout)
    assert found == f"0 10 0 {width}"  # Nothing sticks out of the page, or of a figure.
