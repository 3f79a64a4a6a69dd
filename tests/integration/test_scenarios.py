"""Every configuration that is shipped trains, and its table holds what it promises; reduced sizes."""

from pathlib import Path

import pytest

from tfmetarec import experiment
from tfmetarec.config import load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LEARNED = [path for path in CONFIGS if load(path).transfer.source is None]
QUICK = ["training.epochs=1", "training.steps_per_epoch=2", "tasks.tasks_per_batch=8", "meta.rival=null"]
QUICK += ["evaluation.shots=[0,2]"]
SCENARIOS = {"e-commerce", "social", "news", "entertainment", "finance"}


def scenario(path: Path) -> str | None:
    first, _, rest = path.read_text().partition("\n")
    return first.removeprefix("# Scenario: ").split(".")[0] if first.startswith("# Scenario: ") and rest else None


def test_each_scenario_has_one_configuration_and_a_row_in_the_docs() -> None:
    named = [name for name in map(scenario, CONFIGS) if name in SCENARIOS]
    assert sorted(named) == sorted(SCENARIOS)
    page = (ROOT / "docs" / "scenarios.md").read_text()
    for path in CONFIGS:
        if scenario(path) in SCENARIOS:
            assert f"| [{scenario(path)}](../configs/{path.name}) |" in page


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.stem == "completejourney" else []) for p in LEARNED],
    ids=lambda path: path.stem,
)
def test_a_configuration_trains_and_is_judged(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    quick = list(QUICK)
    if path.stem == "movielens":
        quick += small_movielens(tmp_path / "films")
    config = load(path, quick)
    prepared = experiment.prepare(config)
    run = experiment.start_run(config, tmp_path / "run")
    learner = experiment.train(config, run, prepared, verbose=0)
    table = experiment.evaluate(config, run, prepared, {"learned": learner})
    assert learner.feedback == ("explicit" if path.stem in ("movielens", "social") else "implicit")
    columns = table.pivot().columns
    assert columns == ["learner", *map(str, config.evaluation.shots)]
    assert table.pivot().height >= 4  # The learner and its floors.
    assert table.pivot().null_count().pipe(lambda counts: counts.sum_horizontal().item()) == 0
    again = experiment.open_run(run)
    assert again == config  # Paths included: the run is continued from anywhere.


def small_movielens(folder: Path) -> list[str]:
    """A folder in MovieLens's format and the overrides that read it: the real one comes from the network."""
    folder.mkdir()
    ratings = [f"{u},{(u * 7 + n * 11) % 30 + 1},{1 + (u + n) % 5},{1000 * n}" for u in range(1, 61) for n in range(24)]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]))
    movies = [f"{m},Film {m} (19{50 + m}),{'Comedy|Drama' if m % 2 else 'War'}" for m in range(1, 31)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]))
    return [f"data.options={{folder: {folder}}}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["social", "news", "finance"])
def test_what_was_planted_in_a_sample_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(f"configs/{name}.yaml", ["meta.rival=null"])
    prepared = experiment.prepare(config)
    run = experiment.start_run(config, tmp_path / "run")
    table = experiment.evaluate(config, run, prepared, {"learned": experiment.train(config, run, prepared, verbose=0)})
    few, many = min(config.evaluation.shots), max(config.evaluation.shots)
    floor = "global mean" if name == "social" else "popularity"
    better = table.by_user("learned", many).mean() - table.by_user(floor, many).mean()
    adapted = table.by_user("learned", many).mean() - table.by_user("learned", few).mean()
    sign = -1 if name == "social" else 1  # An error, where less is better.
    assert sign * better > 0.05
    assert sign * adapted > 0.05
