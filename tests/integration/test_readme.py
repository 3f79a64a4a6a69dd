"""The README's Python is run, its links are followed, and its YAML is read."""

import re
from pathlib import Path

import polars as pl
import pytest

from tfmetarec.data import Interactions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The one code block of a language that contains some text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)
    return next(text for text in blocks if containing in text)


def test_the_example_runs_on_small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = block("python", "tmr.meta.MAML")
    for real, small in (
        ('"completejourney"', '"synthetic", n_users=120, interactions_per_user=20, n_items=200'),
        ("min_item_users=10", "min_item_users=1"),
        ("shots=(0, 1, 5, 20)", "shots=(0, 5), query=5"),
        ("epochs=8", "epochs=1, verbose=0"),
    ):
        assert real in code
        code = code.replace(real, small)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["published"].path == Path("exports/journey/1")
    assert set(names["table"].per_user["learner"].unique()) > {"MAML", "popularity"}


@pytest.mark.slow
def test_the_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python", "tmr.meta.MAML"), "README.md", "exec"), {})
    assert (tmp_path / "exports" / "journey" / "1" / "saved_model.pb").exists()


def test_the_mapping_of_your_own_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "purchases").mkdir()
    purchases = pl.DataFrame({"customer": [1, 1, 2], "sku": ["a", "b", "a"], "bought_at": [10, 20, 30]})
    purchases.write_csv(tmp_path / "purchases" / "march.csv")
    pl.DataFrame({"customer": [1, 2], "age": [30, 40], "city": ["x", "y"]}).write_parquet(
        tmp_path / "customers.parquet"
    )
    products = pl.DataFrame({"sku": ["a"], "title": ["Apples"], "brand": ["z"], "tags": [["red"]], "price": [1.5]})
    products.write_ndjson(tmp_path / "products.jsonl")
    (tmp_path / "my-shop.yaml").write_text(block("yaml", "my-shop"))
    shop = Interactions.from_files(tmp_path / "my-shop.yaml")
    assert (len(shop), shop.name, shop.schema.item_name) == (3, "my-shop", "title")
    assert {feature.name: feature.kind for feature in shop.schema.item}["tags"] == "category_list"


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/serving.md", "docs/client.md", "serving/README.md"],
)
def test_no_link_is_dead(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
