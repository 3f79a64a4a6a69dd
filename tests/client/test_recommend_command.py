"""`tfmetarec recommend`: what it asks, and how the answer looks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tfmetarec.cli import recommend


@pytest.fixture
def exported(tmp_path):
    """The part of an exported version that the command reads: `exported(feedback) -> folder`."""

    def write(feedback="implicit", names=("Milk", "Rye bread, dark and sliced, 750 g", "Jam", "Tea", "Honey", "Nuts")):
        extra = tmp_path / "shop" / "1" / "assets.extra"
        (extra / "vocabulary").mkdir(parents=True)
        frame = pl.DataFrame({"item_id": range(1, 7), "shown as": names})
        frame.write_parquet(extra / "vocabulary" / "items.parquet")
        (extra / "tfmetarec.json").write_text(json.dumps({"feedback": feedback}))
        return extra.parent

    return write


@pytest.fixture
def support(tmp_path):
    path = tmp_path / "met.csv"
    path.write_text("item_id,label\n4,1\n2,2\n1,3\n")
    return path


@pytest.fixture
def printed(shops):
    """Runs the command against the shop with numbers: `printed(*arguments, width=80) -> text`."""

    def run(*arguments, width=80, model="numbers"):
        server = ("--server", f"127.0.0.1:{shops.rest_port}", "--model", model)
        ran = subprocess.run(
            [sys.executable, "-m", "tfmetarec", "recommend", *map(str, arguments), *server],
            env={**os.environ, "COLUMNS": str(width)},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run


def cells(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


@pytest.mark.serving
def test_explains_with_names_scores_and_the_interactions_that_speak_for_an_item(printed, exported, support):
    text = printed("--support", support, "--explain", "--export", exported())
    # Item 2 adds its label 2 to item 3, from which 4 takes 0.25: what speaks against an item is not shown.
    assert re.findall(r"┃ *(.*?) *(?=┃)", text) == ["", "item", "name", "score", "because you bought"]
    assert cells(text) == [
        ["1", "3", "Jam", "2.0500", "+2.0000 Rye bread, dark and sliced, 750 g"],
        ["2", "5", "Honey", "1.5000", "+1.0000 Tea"],
        ["3", "6", "Nuts", "0.6000", "-"],
    ]


@pytest.mark.serving
def test_shows_at_most_three_interactions_the_largest_contribution_first(printed, exported, tmp_path):
    # The rows of one item count each: every one adds its label to the item after it.
    rows = [{"item_id": 4, "label": label} for label in (1, 4, 2, 3)]
    (tmp_path / "met.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = printed("--support", tmp_path / "met.jsonl", "--explain", "--export", exported("explicit"), "--top-k", "1")
    assert "because you rated" in text
    assert cells(text) == [
        ["1", "5", "Honey", "10.5000", "+4.0000 Tea"],
        ["", "", "", "", "+3.0000 Tea"],
        ["", "", "", "", "+2.0000 Tea"],
    ]


@pytest.mark.serving
def test_without_the_export_there_are_ids_and_no_verb(printed, support):
    text = printed("--support", support, "--explain")
    assert "because of" in text
    assert cells(text)[0] == ["1", "3", "2.0500", "+2.0000 2"]


@pytest.mark.serving
@pytest.mark.parametrize("width", [80, 120])
def test_long_names_are_cut_to_the_width_and_numbers_never(printed, exported, support, width):
    long = [f"{word} of the finest kind that the house has to offer, in a glass" for word in ("Milk", "Bread", "Jam")]
    text = printed("--support", support, "--explain", "--export", exported(names=[*long, *long]), width=width)
    assert {len(line) for line in text.splitlines()} == {width}
    name, score, because = cells(text)[0][2:]
    assert (name[:14], name[-1], score) == ("Jam of the fin", "…", "2.0500")
    assert (because[:20], because[-1]) == ("+2.0000 Bread of the", "…")


@pytest.mark.serving
def test_options_reach_the_model(printed):
    assert [row[1] for row in cells(printed("--top-k", "2"))] == ["6", "5"]
    assert [row[1] for row in cells(printed("1", "--exclude", "6", "--exclude", "5"))] == ["2", "4", "3"]
    only = ("--only", "department=tea", "--only", "shop tags=red", "--only", "shop tags=blue")
    assert [row[1] for row in cells(printed(*only))] == ["2", "1"]
    assert cells(printed("1", "2", "--label", "1", "--label", "3", "--user", "age=10", "--top-k", "1")) == [
        ["1", "3", "3.4000"]
    ]
    assert cells(printed("w2", "--top-k", "1", model="words")) == [["1", "w3", "1.3000"]]


@pytest.mark.serving
def test_an_answer_without_items_is_said(printed):
    assert printed("--only", "department=coffee") == "No item fits.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": ["1"], "support": Path("a.csv")}, "Give what the user met once: as a `--support` file, or as ids"),
        ({"label": [1.0], "support": Path("a.csv")}, "Give what the user met once: as a `--support` file, or as ids"),
        ({"explain": True, "only": ["a=b"]}, "it takes no `--exclude` or `--only`"),
        ({"explain": True, "exclude": ["1"]}, "it takes no `--exclude` or `--only`"),
        ({"only": ["brand"]}, "`--only` must look like name=value. Received: 'brand'"),
        ({"user": ["=3"]}, "`--user` must look like name=value. Received: '=3'"),
        ({"support": Path("nowhere.csv")}, "nowhere.csv cannot be read: "),
        ({"export": Path("nowhere")}, "nowhere is not a version that tfmetarec exported: it has no assets.extra"),
    ],
)
def test_options_that_contradict_each_other_are_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recommend(**arguments)


def test_a_model_of_ratings_does_not_take_interactions_for_ratings_of_1(exported):
    with pytest.raises(ValueError, match="This model learns from ratings: give one `--label` an item"):
        recommend(items=["1"], export=exported("explicit"))
