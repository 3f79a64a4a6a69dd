"""The samples beside the configurations are what their generator writes, and hold what their README says."""

import importlib.util
from pathlib import Path

import polars as pl
import pytest

from tfmetarec.config import load
from tfmetarec.data import Interactions
from tfmetarec.data import load as load_data

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "samples"


def generator():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interactions(name: str, monkeypatch: pytest.MonkeyPatch) -> Interactions:
    monkeypatch.chdir(ROOT)  # Where the configurations are meant to be run.
    config = load(f"configs/{name}.yaml")
    return load_data(config.data.source, **config.data.options)


@pytest.mark.parametrize("name", ["ciaodvd", "mind", "santander"])
def test_a_sample_is_what_its_generator_writes(name: str, tmp_path: Path) -> None:
    generator().SAMPLES[name](tmp_path)
    committed = sorted((FOLDER / name).iterdir())
    assert [path.name for path in committed] == sorted(path.name for path in tmp_path.iterdir())
    for path in committed:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
        assert path.stat().st_size < 300_000


def test_a_rating_of_the_social_sample_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made = interactions("social", monkeypatch)
    assert (len(made), made.n_users, made.n_items) == (5887, 320, 180)
    lines = (FOLDER / "ciaodvd" / "movie-ratings.txt").read_text().splitlines()
    assert len(lines) == len(made)
    assert lines[0] == "90,1,1,1,2,2001-05-29"
    first = made.table.filter(pl.col("user_id") == 90, pl.col("item_id") == 1)
    assert first.select("label", "timestamp").row(0) == (2.0, 991_094_400)
    trusts = [line.split(",") for line in (FOLDER / "ciaodvd" / "trusts.txt").read_text().splitlines()]
    assert made.users["trusting"].sum() == made.users["trusted_by"].sum() == len(trusts) == 1252
    of_one = made.users.filter(pl.col("user_id") == 1).row(0, named=True)
    assert of_one["trusts"] == [to for who, to, _ in trusts if who == "1"]
    assert of_one["trusted_by"] == sum(to == "1" for _, to, _ in trusts)


def test_a_click_of_the_news_sample_is_in_the_history_or_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = interactions("news", monkeypatch)
    assert (len(made), made.n_users, made.n_items) == (6033, 400, 260)
    clicked = set()
    for line in (FOLDER / "mind" / "behaviors.tsv").read_text().splitlines():
        _, user, _, history, impressions = line.split("\t")
        marked = [item.removesuffix("-1") for item in impressions.split() if item.endswith("-1")]
        clicked |= {(user, item) for item in [*history.split(), *marked]}
    assert set(made.table.select("user_id", "item_id").rows()) == clicked
    assert made.items["title"][0] == 'Engine charging: the "torque" story'
    assert made.table["timestamp"].min() == 1_573_172_069  # 11/8/2019 12:14:29 AM


def test_a_product_of_the_finance_sample_counts_when_it_is_first_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made = interactions("finance", monkeypatch)
    assert (len(made), made.n_users, made.n_items) == (1811, 300, 24)
    header, *lines = (FOLDER / "santander" / "train.csv").read_text().splitlines()
    assert len(header.split(",")) == 48
    months = [line.rsplit(",", 24) for line in lines if line.split(",")[1] == "100001"]
    taken = {}
    for about, *held in months:
        for name, cell in zip(header.split(",")[24:], held, strict=True):
            if cell == "1":
                taken.setdefault(name, about.split(",")[0])
    own = made.table.filter(pl.col("user_id") == 100_001)
    days = pl.from_epoch(own["timestamp"]).dt.strftime("%Y-%m-%d").to_list()
    assert dict(zip(own["item_id"].to_list(), days, strict=True)) == taken
    assert made.users.filter(pl.col("user_id") == 100_001).select("age", "segmento").row(0) == (None, "01 - TOP")
