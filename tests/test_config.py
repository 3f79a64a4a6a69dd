"""Configurations are checked before anything starts, and say what is wrong in one sentence."""

import re
from pathlib import Path

import pytest
import yaml

from tfmetarec.config import Config, ConfigError, load, value_of, with_values

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


def test_no_file_means_the_quickstart() -> None:
    assert load() == Config()
    assert load().data.source == "completejourney"


def test_a_config_survives_being_written_and_read(tmp_path: Path) -> None:
    config = load(None, ["meta.inner_learning_rate=0.05", "evaluation.shots=[0, 2]", "data.options={a: 1}"])
    assert load(write(tmp_path, config.to_yaml())) == config


def test_overrides_win_over_the_file_and_are_typed(tmp_path: Path) -> None:
    config = load(write(tmp_path, "meta: {inner_steps: 3, shrinkage: 1}"), ["meta.inner_steps=5", "seed=7"])
    assert (config.meta.inner_steps, config.meta.shrinkage, config.seed) == (5, 1.0, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "meta: {inner_learning_rat: 0.1}",
            "unknown key `meta.inner_learning_rat`; did you mean `meta.inner_learning_rate`?",
        ),
        ("modell: {}", "unknown key `modell`; did you mean `model`?"),
        ("split: {xyzzy: 1}", "unknown key `split.xyzzy`; known: test_share, validation_share, cold_item_share."),
        ("split: {test_share: 1.5}", "`split.test_share`: input should be less than 1. Received: 1.5"),
        ("meta: {inner_steps: two}", "`meta.inner_steps`: input should be a valid integer"),
        ("meta: [1]", "`meta`: input should be"),
        ("[1, 2]", "must hold a mapping of sections. Received: list"),
        ("a: [", "is not valid YAML"),
        ("name: ../escape", "`name`: string should match pattern"),
    ],
)
def test_a_mistake_is_named_with_its_rule(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("meta.inner_steps", "must look like `section.key=value`"),
        ("name.x=1", "did you mean"),
        ("seed={", "is not valid YAML"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError):
        load(None, [override])
    if message != "did you mean":
        with pytest.raises(ConfigError, match=message):
            load(None, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("nowhere.yaml: No such file")):
        load(tmp_path / "nowhere.yaml")


def test_paths_of_the_data_do_not_depend_on_where_a_later_command_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = load(None, ["data.options.mapping=shop/data.yaml", "data.options.folder=../ml"]).data.options
    assert options == {"mapping": str(tmp_path / "shop" / "data.yaml"), "folder": str(tmp_path.parent / "ml")}
    sections = "data.options.mapping={interactions: {path: events.csv}, users: {path: [a.csv, /b.csv], lists: {f: {path: c.csv}}}}"
    mapping = load(None, [sections]).data.options["mapping"]
    assert mapping["interactions"]["path"] == str(tmp_path / "events.csv")
    assert mapping["users"]["path"] == [str(tmp_path / "a.csv"), "/b.csv"]
    assert mapping["users"]["lists"]["f"]["path"] == str(tmp_path / "c.csv")


def test_every_field_has_a_sentence() -> None:
    for section in Config.model_fields.values():
        for name, field in getattr(section.annotation, "model_fields", {}).items():
            assert field.description, name
            assert field.description.endswith("."), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load(path).name == yaml.safe_load(path.read_text())["name"]


def test_the_shipped_quickstart_config_is_what_quickstart_runs() -> None:
    shipped = load(CONFIGS[0].parent / "completejourney.yaml")
    assert shipped.model_copy(update={"name": "quickstart"}) == Config()


def test_other_values_make_another_configuration() -> None:
    config = load(None, ["meta.options={proximal: 1}"])
    other = with_values(
        config, {"meta.options.adaptation_steps": 5, "tasks.support": [0, 5], "model.options.item_hidden": None}
    )
    assert other.meta.options == {"proximal": 1, "adaptation_steps": 5}
    assert other.tasks.support == (0, 5)
    assert other.model.options == {"item_hidden": None}
    assert config.meta.options == {"proximal": 1}
    assert value_of(other, "meta.options.adaptation_steps") == 5
    assert value_of(other, "tasks.support") == [0, 5]
    assert value_of(config, "model.options.item_hidden") is None
    with pytest.raises(ConfigError, match="unknown key `meta.inner_step`; did you mean `meta.inner_steps`?"):
        with_values(config, {"meta.inner_step": 2})


def test_a_rate_for_each_layer_takes_the_place_of_one_for_all() -> None:
    patterns = {"meta.inner_learning_rate.head/tower.*": 0.5, "meta.inner_learning_rate.level": 2.0}
    found = with_values(Config(), patterns)
    assert found.meta.inner_learning_rate == {"head/tower.*": 0.5, "level": 2.0}
    with pytest.raises(ConfigError, match="`meta.inner_learning_rate`: must be greater than 0. Received: {'a': 0.0}"):
        load(None, ["meta.inner_learning_rate={a: 0.0}"])
    with pytest.raises(ConfigError, match="`meta.inner_learning_rate`: must be greater than 0. Received: -1"):
        load(None, ["meta.inner_learning_rate=-1"])
    with pytest.raises(ConfigError, match="`meta.inner_learning_rate`: input should be a valid number.* Received: 'x'"):
        load(None, ["meta.inner_learning_rate=x"])
