"""A page about runs: what `evaluate` has judged and `tune` has searched, as people look at it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmetarec import evaluation, experiment, tuning
from tfmetarec.config import Config, value_of
from tfmetarec.evaluation import report as page
from tfmetarec.evaluation.drawing import cut
from tfmetarec.evaluation.examination_report import examined, sliced


def report(runs: Sequence[Path], out: Path | None = None) -> list[Path]:
    """One page of HTML about a run that `evaluate` has judged or `tune` has searched, or about several runs.

    Args:
        runs: their folders.
        out: the page; `report.html` in the first run's folder if `None`.

    Returns:
        The page, then its figures as SVG; each is there as PNG too.

    Raises:
        ValueError: if there is nothing to report of a run yet.
    """
    runs = list(dict.fromkeys(runs))
    configs = {run: experiment.open_run(run) for run in runs}
    for run in runs:
        if not (run / "metrics.parquet").exists() and not (run / "trials.parquet").exists():
            raise ValueError(f"{run} has nothing to report yet: `tfmetarec evaluate {run}` makes its table.")
    sections: list[page.Section] = []
    for number, (run, config) in enumerate(configs.items(), 1):
        own = _sections(config, run)
        if len(runs) > 1:  # Each figure has a name of its own.
            for section in own:
                section.title = f"{cut(config.name, 30)} ({number}): {section.title[0].lower()}{section.title[1:]}"
                section.drawings = {f"run{number}-{name}": drawing for name, drawing in section.drawings.items()}
        sections += own
    judged = [(i, run) for i, run in enumerate(runs, 1) if (run / "metrics.parquet").exists()]
    if len(judged) > 1:
        tables = {f"{cut(configs[run].name, 30)} ({i})": experiment.judged_table(run) for i, run in judged}
        sections.insert(0, page.side_by_side(tables, _not_alike([configs[run] for _, run in judged])))
    first = configs[runs[0]]
    title = first.name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(c.name for c in configs.values())}"
    versions = json.loads((runs[0] / "environment.json").read_text())["versions"]
    about = [
        ("data", ", ".join(dict.fromkeys(config.data.source for config in configs.values()))),
        ("learner", ", ".join(dict.fromkeys(config.meta.algorithm for config in configs.values()))),
        ("seed", ", ".join(dict.fromkeys(str(config.seed) for config in configs.values()))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return page.write_report(out or runs[0] / "report.html", title, about, sections)


def _not_alike(configs: Sequence[Config]) -> list[str]:
    """What is not the same in runs that stand side by side, so that their users were not asked the same."""
    keys = ("data", "split", "seed", "vocabulary", "tasks.order", "evaluation.query")
    asked = [
        {**{key: value_of(config, key) for key in keys}, "evaluation.shots": max(config.evaluation.shots)}
        for config in configs
    ]
    other = [key for key in asked[0] if any(one[key] != asked[0][key] for one in asked)]
    if not other:
        return []
    return [f"These runs differ in {', '.join(other)}: a difference may be that of their users, or of what was asked."]


def _sections(config: Config, run: Path) -> list[page.Section]:
    """What there is to say of a run."""
    prepared = experiment.prepare(config)
    searched = [_search_section(config, run, prepared)] if (run / "trials.parquet").exists() else []
    if not (run / "metrics.parquet").exists():
        return searched
    table, models = experiment.judged_table(run), experiment.learners(config, run)
    names, name = list(models), list(models)[-1]
    histories = {
        own: json.loads((run / f"{kind}-history.json").read_text())
        for own, kind in zip(reversed(names), ("learner", "rival"), strict=False)
    }
    found = [
        page.headline(table, names),
        page.gains(table, name, names),
        *_looked_at(config, run, prepared, table, names),
        page.training(histories),
        page.example(models[name], prepared.split.test, prepared.vocabulary),
        *searched,
    ]
    model: Any = getattr(models[name], "model", None)
    if hasattr(model, "encode_item"):
        vocabulary = prepared.vocabulary
        popular = np.argsort(-vocabulary.popularity[1:], kind="stable")[:8] + 1
        vectors = np.asarray(model.encode_item(vocabulary.catalogue))
        nearest = page.neighbours(vectors, vocabulary.item_names, popular.tolist())
        text = "The most popular items, and what the learner holds to be like them."
        found.append(page.Section("Similar items", [text], [nearest]))
    return found


def _looked_at(
    config: Config, run: Path, prepared: experiment.Prepared, table: evaluation.ColdStartTable, names: Sequence[str]
) -> list[page.Section]:
    """What `evaluate` has found beside the table; of an older run, or a quickstart's, the groups of users alone."""
    found = experiment.examination(run)
    if found is not None:
        return examined(found, names)
    k = int(table.per_user["K"].max())  # type: ignore[arg-type]
    floor = table.best_floor(k, names) if table.per_user["learner"].n_unique() > len(names) else None
    shown = [names[-1], *([floor] if floor else [])]
    values = evaluation.user_values(table, shown, k)
    people = evaluation.user_groups(prepared.split.test, users=values["user_id"].unique())
    groups, few = evaluation.slices(values, people, against=floor, seed=config.seed)
    return [sliced(groups, few, names[-1], floor, table.metric_name(), k)]


def _search_section(config: Config, run: Path, prepared: experiment.Prepared) -> page.Section:
    """What a search in this folder has tried."""
    tuner = experiment.searched(config, run, prepared)
    objective, best = tuner.oracle.objective, tuning.best_trial(tuner)
    trials = tuning.trials_table(tuner)
    done = (trials["status"] == "completed").sum()
    text = (
        f"{done} of {trials.height} trials were completed; the best is trial {best.trial_id}, with "
        f"{objective.name} {best.score:.4f} on validation users."
    )
    rows = tuning.ranked(trials, objective)
    table = page.TableOf("The ten best trials", list(rows[0]), [list(row.values()) for row in rows])
    drawings = tuning.drawings(tuner, experiment.RATES, seed=config.seed)
    return page.Section("The search", [text], [table], drawings)
