"""Every algorithm has its page, pages say what they promise, links lead somewhere, and the example runs."""

import inspect
import re
from pathlib import Path

import pytest

import tfmetarec as tmr
from tfmetarec.experiment import find
from tfmetarec.meta.learner import MetaLearner

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "algorithms"
ALGORITHMS = {
    name: Path(inspect.getfile(kind)).stem
    for name, kind in vars(tmr.meta).items()
    if inspect.isclass(kind) and issubclass(kind, MetaLearner) and name not in ("MetaLearner", "GradientLearner")
}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_has_a_page_with_idea_equation_use_and_cost(name: str) -> None:
    page = (PAGES / f"{ALGORITHMS[name]}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall("^## (.*)$", page, flags=re.M) == ["Idea", "Equation", "When", "Cost"]
    assert f"`meta.algorithm: {ALGORITHMS[name]}`" in page
    assert find("meta", ALGORITHMS[name]) is getattr(tmr.meta, name)
    links = set(re.findall(r"\]\((https://(?:arxiv|doi)[^)]+)\)", page))
    assert links <= set(re.findall(r"\]\((https://[^)]+)\)", inspect.getdoc(getattr(tmr.meta, name)) or ""))
    assert links
    assert f"[{name}]({ALGORITHMS[name]}.md)" in (PAGES / "README.md").read_text()


def test_every_page_is_of_an_algorithm() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {*ALGORITHMS.values(), "README"}


def test_the_model_of_ones_own_is_trained_in_twenty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / "README.md").read_text(), flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    names: dict = {}
    exec(compile(code.replace("epochs=5", "epochs=2, verbose=0"), "README.md", "exec"), names)
    history = names["learner"].history.history["loss"]
    assert history[-1] < history[0]
    assert names["learner"].adapted_variables[0].path.endswith("kernel")


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_no_link_is_dead(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


SLOW = pytest.mark.slow


LONG = ("getting_started", "distillation", "cross_domain")


@pytest.mark.parametrize(
    "page", ["data", "tuning", "evaluation", "cold_start", *(pytest.param(page, marks=SLOW) for page in LONG)]
)
def test_the_first_example_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.S)[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{page}.md", "exec"), {})


def test_the_first_learner_of_getting_started_learns() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "getting_started.md").read_text(), flags=re.S)[0]
    code, _, _ = code.partition("published =")  # Its export is checked in a process of its own, which takes long.
    code = code.replace("n_users=300", "n_users=100").replace("epochs=10", "epochs=2, verbose=0")
    names: dict = {}
    exec(compile(code, "getting_started.md", "exec"), names)
    floors = {baseline.name for baseline in tmr.models.baselines.floors("explicit")}
    assert set(names["table"].per_user["learner"].unique()) == {"MAML", *floors}
