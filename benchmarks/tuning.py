"""What a search finds: Hyperband and Bayesian optimisation against the committed settings and against random search.

Complete Journey with `configs/completejourney.yaml`, and, with `--data` a folder of MovieLens-1M, its ratings with
`configs/movielens.yaml`. Each tuner searches the same names with `tfmetarec tune`'s own function and two workers, and
its first trial is the committed settings, which Hyperband trains for an epoch unless they are among the best: they are
compared as Bayesian optimisation has trained them. Hyperband and Bayesian optimisation have so many trials each; random
search has as much time as the slower of them needed, however many trials that makes. The objective is the mean over K
on validation users, nDCG@20 or MAE, of the best epoch. Seconds are those that workers spent on trials, divided by the
workers.

The first table says what each search did and how far it came, also after a half of the time of random search. The
second: what its best trial gains over the committed settings, on the validation users that it was chosen on and on test
users, with intervals over users (paired bootstrap; the mean over K of each user); the learners are those that the
trials left. Test users are judged once. The third: all of them beside the floors on test users. The fourth: the values
that were found.

A run that was interrupted goes on where it stopped, in a folder beside the JSON file.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console

import tfmetarec as tmr
from benchmarks import report
from tfmetarec import experiment
from tfmetarec.config import Config, load, with_values
from tfmetarec.console import trial_line
from tfmetarec.evaluation import ColdStartTable, monitor_of, paired_bootstrap
from tfmetarec.tuning import MetaTuner, best_trial, trials_table

NAME = "tuning"
CONFIGS = Path(__file__).parents[1] / "configs"
SEARCHES = ("hyperband", "bayesian", "random")
TRIALS, EPOCHS, WORKERS = 20, 9, 2  # Brackets of 9 epochs make 20 trials before the last of them.
PATIENCE = 3
START = 0.5  # Minutes.
DEFAULTS = "committed settings"
NAMES = (
    "training.learning_rate",
    "training.weight_decay",
    "meta.inner_learning_rate",
    "meta.inner_steps",
    "meta.shrinkage",
    "model.embedding_dim",
    "model.dropout",
    "model.id_dropout",
)


class Case(NamedTuple):
    """An experiment whose settings are searched."""

    name: str
    config: Config


def cases(options: report.Options) -> list[Case]:
    """Complete Journey, and MovieLens-1M if there is a folder for it; made-up purchases for a quick run."""
    search = {
        "tuning.only": NAMES,
        "tuning.epochs": EPOCHS,
        "tuning.trials": TRIALS,
        "training.patience": PATIENCE,
        "meta.rival": None,
    }
    if options.quick:
        small = load(CONFIGS / "completejourney.yaml")
        made_up = {"n_users": 80, "n_items": 60, "interactions_per_user": 12, "seed": 0}
        values = {
            "data.source": "synthetic",
            "data.options": made_up,
            "vocabulary.min_item_users": 1,
            "tasks.query": 5,
            "tasks.negatives": 30,
            "meta.contrast": 30,
            "evaluation.shots": (0, 5),
            "evaluation.query": 5,
            "evaluation.top_k": 5,
            **search,
            "tuning.only": NAMES[:4],
            "tuning.epochs": 2,
            "tuning.trials": 3,
        }
        return [Case("made up", with_values(small, values))]
    found = [Case("completejourney", with_values(load(CONFIGS / "completejourney.yaml"), search))]
    if options.data is not None:
        data = {"data.options": {"folder": str(options.data.absolute())}, "name": "ml-1m"}
        steps = {"training.steps_per_epoch": 60}
        found.append(Case("ml-1m", with_values(load(CONFIGS / "movielens.yaml"), {**search, **data, **steps})))
    return found


def seconds_of(tuner: MetaTuner) -> np.ndarray:
    """When each trial had ended, by the clock of all workers together, in the order in which they ended."""
    table = {row["trial"]: row["seconds"] or 0.0 for row in trials_table(tuner).iter_rows(named=True)}
    return np.cumsum([table[trial] for trial in tuner.oracle.end_order]) / WORKERS


def best_after(tuner: MetaTuner, seconds: float) -> float:
    """The best objective of the trials that had ended by then; NaN for none."""
    pick = max if tuner.oracle.objective.direction == "max" else min
    ended = zip(tuner.oracle.end_order, seconds_of(tuner), strict=True)
    scores = [tuner.oracle.trials[trial].score for trial, at in ended if at <= seconds]
    return pick((score for score in scores if score is not None), default=float("nan"))


def searched(case: Case, kind: str, minutes: float | None, parts: Path, console: Console) -> experiment.Tuned:
    """One search, or what an interrupted run has left of it."""
    values: dict[str, Any] = {"tuning.tuner": kind}
    if minutes is not None:
        values |= {"tuning.max_minutes": minutes, "tuning.trials": 1000}
    config, run = with_values(case.config, values), parts / f"{case.name}-{kind}"
    prepared = experiment.prepare(config)
    done = (run / "best.yaml").exists()
    if done:  # Its time is up, and nothing may be added.
        config = with_values(config, {"tuning.max_minutes": None, "tuning.trials": 1})
    folder = experiment.start_run(config, run)

    def ended(tuner: MetaTuner, trial: Any) -> None:
        console.print(f"  {kind}, {trial_line(tuner, trial)}", highlight=False, soft_wrap=True)

    workers = 1 if done else WORKERS
    found = experiment.tune(config, folder, prepared, workers=workers, ended=ended)
    assert found is not None
    return found


def judged(
    case: Case, prepared: experiment.Prepared, part: str, learners: dict[str, Any], floors: bool
) -> ColdStartTable:
    """The protocol of the configuration on validation or test users."""
    own = case.config.evaluation
    return tmr.evaluation.cold_start(
        learners,
        prepared.split.parts[part],
        vocabulary=prepared.vocabulary,
        train=prepared.split.train if floors else None,
        shots=own.shots,
        query=own.query,
        top_k=own.top_k,
        order=case.config.tasks.order,
        seed=case.config.seed,
    )


def compared(
    case: Case, found: dict[str, experiment.Tuned]
) -> tuple[report.Rows, report.Rows, dict[str, tuple[float, float]]]:
    """Gains over the committed settings, everything beside the floors, and the test gains' means and lower ends."""
    prepared = experiment.prepare(case.config)
    full = found["bayesian"].tuner  # Hyperband may have given its first trial a single epoch.
    learners = {DEFAULTS: full.load_model(full.oracle.trials[full.oracle.start_order[0]])}
    learners |= {f"best of {kind}": one.tuner.load_model(one.best) for kind, one in found.items()}
    feedback = prepared.vocabulary.specs.feedback
    wanted, direction = monitor_of(feedback, case.config.training.monitor)
    sign = 1.0 if direction == "max" else -1.0
    tables = {part: judged(case, prepared, part, learners, part == "test") for part in ("validation", "test")}
    columns = tables["test"].per_user.columns
    metric = next(name for name in columns if name.split("@")[0] == wanted.removeprefix("val_"))
    gains: report.Rows = []
    held: dict[str, tuple[float, float]] = {}
    for kind in found:
        row: dict[str, Any] = {"search": kind}
        for part, table in tables.items():
            own, base = (table.by_user(name, metric=metric) for name in (f"best of {kind}", DEFAULTS))
            gain = paired_bootstrap(sign * own, sign * base, seed=case.config.seed)
            row |= {f"{part}_gain": gain.mean, f"{part}_low": gain.low, f"{part}_high": gain.high}
            row[f"{part}_share"] = gain.mean / abs(base.mean())
        gains.append(row)
        held[kind] = (row["test_gain"], row["test_low"])
    rows: report.Rows = []
    for name in tables["test"].per_user["learner"].unique(maintain_order=True):
        own = tables["test"].summary.filter((pl.col("learner") == name) & (pl.col("metric") == metric))
        row = {"learner": name, **{f"K={k}": value for k, value in own.select("K", "mean").iter_rows()}}
        rows.append({**row, "mean": float(tables["test"].by_user(name, metric=metric).mean())})
    return gains, rows, held


def progress_rows(found: dict[str, experiment.Tuned]) -> report.Rows:
    """What each search did."""
    at = float(seconds_of(found["random"].tuner)[-1]) if "random" in found else 0.0
    rows: report.Rows = []
    for kind, one in found.items():
        status, seconds = one.trials["status"], seconds_of(one.tuner)
        first = one.tuner.oracle.trials[one.tuner.oracle.start_order[0]]
        row: dict[str, Any] = {"search": kind, "trials": len(status), "failed": int((status == "failed").sum())}
        row |= {"epochs": int(one.trials["epochs"].sum()), "minutes": float(seconds[-1]) / 60}
        row |= {"first_trial": first.score, "best": one.best.score, "best_trial": one.best.trial_id}
        row |= {"best_after_half_the_time": best_after(one.tuner, at / 2)}
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    options = report.read_options(NAME, "What a search finds on validation users, and what it is worth.", arguments)
    console = report.console()
    if options.data is None:
        console.print("MovieLens-1M is left out: no `--data`.")
    figures: dict[str, report.Rows] = {}
    targets: list[report.Target] = []
    for case in cases(options):
        console.print(case.name, highlight=False)
        found: dict[str, experiment.Tuned] = {}
        for kind in SEARCHES:
            minutes = None
            if kind == "random":  # And what workers take to start, which is in no trial's seconds.
                minutes = START + max(float(seconds_of(one.tuner)[-1]) for one in found.values()) / 60
            found[kind] = searched(case, kind, minutes, options.parts, console)
        gains, rows, held = compared(case, found)
        sign = 1 if found["random"].tuner.oracle.objective.direction == "max" else -1
        chosen = max(("hyperband", "bayesian"), key=lambda kind: sign * found[kind].best.score)
        figures |= {
            f"{case.name}: searches, on validation users": progress_rows(found),
            f"{case.name}: gains over the committed settings": gains,
            f"{case.name}: test users": rows,
            f"{case.name}: what was found": [
                {"search": kind, **_found(one.tuner), "epochs": one.config.training.epochs}
                for kind, one in found.items()
            ],
        }
        name = f"{case.name}: gain of {chosen}'s best on test users, lower end"
        targets.append(report.Target(name, held[chosen][1], "at least", 0.0))
    config = {
        "trials": TRIALS,
        "epochs": EPOCHS,
        "workers": WORKERS,
        "patience": PATIENCE,
        "names": NAMES,
        "experiments": {case.name: _without_paths(case.config) for case in cases(options)},
    }
    status = report.finish(options, config=config, figures=figures, targets=targets, console=console)
    shutil.rmtree(options.parts, ignore_errors=True)
    return status


def _found(tuner: MetaTuner) -> dict[str, Any]:
    best = best_trial(tuner)
    row = trials_table(tuner).filter(pl.col("trial") == best.trial_id)
    return {name.rpartition(".")[2]: value for name, value in json.loads(row["values"][0]).items()}


def _without_paths(config: Config) -> dict[str, Any]:
    """The settings, without where somebody keeps their data."""
    plain = config.model_dump(mode="json")
    plain["data"]["options"] = {key: value for key, value in plain["data"]["options"].items() if key != "folder"}
    return plain


if __name__ == "__main__":
    report.run(main)
