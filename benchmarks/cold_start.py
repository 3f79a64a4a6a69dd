"""New users against the floors: everything in one run, chosen on validation users, test users asked once.

Ratings (MovieLens-1M in its published states, or four drawn ones of other data): of a user with 13 to 100 ratings in a
state 10 are drawn as the query and the rest, or only 5, are the support. MAE, RMSE and nDCG@5 are means over users,
predictions clipped. Choices (Complete Journey, or other data without ratings): a fifth of the users is held out; their
first K items in time are the support, the 21st to 40th what is judged, the whole catalogue less the support is ranked.

`--data` is `ml-1m`, `ml-latest-small`, `completejourney`, a folder of MovieLens, or a YAML mapping of your own files.
There is one configuration for ratings and one for choices, whatever the data. `mixture` weighs its members by a gate
that knows K, fitted on validation users; `as medians` are the same predictions through `MedianRatings`, which keeps
their order: absolute error asks for medians and squared error for means, so each has its row, and the floors have both.

Every seed is kept in a folder beside the JSON file until the run is done, so that an interrupted run goes on.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow as tf

import tfmetarec as tmr
from benchmarks import cold_start_choices as choices
from benchmarks import cold_start_ratings as ratings
from benchmarks import distillation, report, zero_shot
from tfmetarec.data import DataError, Interactions
from tfmetarec.data.whole_file import write_whole

NAME = "cold_start"
DATA = ("completejourney", "ml-1m", "ml-latest-small")
QUICK_STEPS = 5
CONTENT = ("item_id", "title", "genres", "mpaa", "directors", "actors", "year")  # Of films as choices.
LEARNERS = tuple(dict.fromkeys((*ratings.LEARNERS, *choices.LEARNERS)))
MORE = {
    "--learners": {"nargs": "+", "choices": LEARNERS, "metavar": "NAME", "help": f"of: {', '.join(LEARNERS)}"},
    "--predictions": {"type": Path, "metavar": "FOLDER", "help": "write every prediction as Parquet"},
}


def folder_of(data: Path) -> Path:
    """Where a named data set of MovieLens is: `--data` itself, or below `TFMETAREC_TEST_DATA`."""
    if data.exists():
        return data
    root = os.environ.get("TFMETAREC_TEST_DATA")
    found = Path(root) / data if root else data
    if not found.is_dir():
        raise DataError(f"`--data {data}` needs a folder: give its path, or set TFMETAREC_TEST_DATA to what holds it.")
    return found


def load(data: Path | None, quick: bool) -> Any:
    """The problem that `--data` names, of ratings or of choices."""
    name = "completejourney" if data is None else str(data)
    if data is not None and data.suffix in (".yaml", ".yml"):
        interactions = Interactions.from_files(data)
    elif name == "completejourney":
        interactions = tmr.data.load("completejourney")
    else:
        folder = folder_of(data or Path())
        if (folder / "split_metahin.parquet").exists():
            split = zero_shot.films(folder)
            return ratings.problem(split.train, zero_shot.fewer(split) if quick else split, CONTENT)
        interactions = tmr.data.load("movielens", folder=folder)
    if quick:
        users = interactions.table["user_id"].unique().sort().head(250)
        interactions = interactions.filter(pl.col("user_id").is_in(users.implode()))
    if interactions.schema.feedback == "explicit":
        return ratings.problem(interactions)
    return choices.problem(interactions, 5 if quick else choices.MIN_ITEM_USERS)


def run_ratings(options: report.Options, case: ratings.Problem, console: Any) -> int:
    """Ratings: four states."""

    def say(text: str) -> None:
        console.print(text, highlight=False)

    names = [name for name in ratings.LEARNERS if name in (options.more["learners"] or ratings.LEARNERS)]
    budget = ratings.Budget(QUICK_STEPS if options.quick else ratings.EPOCH, options.quick)
    published = case.split.seed is None  # Nothing was drawn.
    kept = [_file(options, case.name, seed, "users") for seed in range(options.seeds)]
    chosen, ablation = None, _file(options, case.name, 0, "ablation")
    if not all(file.exists() for file in (*kept, ablation)):
        say("learned on a part of the training users, to choose on the others")
        chosen = ratings.choose(case, names, budget, say)
        with write_whole(ablation) as partial:
            pl.DataFrame(chosen.ablation or [{"variant": "no mixture"}]).write_parquet(partial)
    floors = None
    for seed, file in enumerate(kept):
        if not file.exists():
            assert chosen is not None
            say(f"seed {seed} of {options.seeds}")
            floors = floors or ratings.Floors.of(case.split.train, say, options.quick)
            keep = options.more["predictions"] is not None
            made = ratings.measured(case, floors, names, chosen, budget, seed, say, keep)
            if keep:
                _write_predictions(options, f"{case.name}-{seed}", made.pop("predictions"))
            for part in ("binary", "users"):  # The users last: they say that all is there.
                with write_whole(_file(options, case.name, seed, part)) as partial:
                    made[part].write_parquet(partial)
    tried = _file(options, case.name, 0, "levers")
    if not tried.exists() and "set encoder on factors" in names and ratings.askable(case.held, ("user_cold",)):
        say("what each choice is worth, on validation users")
        with write_whole(tried) as partial:
            pl.DataFrame(ratings.levers(case, budget, say)).write_parquet(partial)
    users = pl.concat([pl.read_parquet(file) for file in kept])
    binary = pl.concat([pl.read_parquet(_file(options, case.name, seed, "binary")) for seed in range(options.seeds)])
    rows = ratings.summary(users)
    figures = {
        "Four states": rows,
        "Against the best floor": ratings.verdicts(users),
        "Liked or not, all users new": _over_seeds(binary),
        "Ablation on validation users": pl.read_parquet(ablation).to_dicts(),
    }
    if tried.exists():
        figures["The set encoder on validation users"] = pl.read_parquet(tried).to_dicts()
    targets = ratings.targets(rows, published)
    if published or options.quick:
        told = _rated_or_not(options, case, say)
        figures["Rated, or drawn from what was not"] = told
        name = f"{choices.MIXTURE}, best accuracy on validation"
        accuracy = next(row["accuracy"] for row in told if row["classifier"] == name)
        targets.append(report.Target(f"accuracy against drawn films ({choices.MIXTURE})", accuracy, "at least", 0.8533))
    config = {"data": case.name, "learners": names, **ratings.settings()}
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


def _rated_or_not(options: report.Options, case: ratings.Problem, say: Any) -> report.Rows:
    file = _file(options, case.name, 0, "rated")
    if not file.exists():
        say("rated, or drawn from what was not")
        parts = (case.split.train, case.split["user_cold"], case.held)
        train, test, held = (_as_choices(part) for part in parts)
        steps = QUICK_STEPS if options.quick else None
        with write_whole(file) as partial:
            pl.DataFrame(choices.told_apart(train, test, 0, steps, held)).write_parquet(partial)
    return _over_seeds(pl.read_parquet(file))


def _as_choices(part: Any) -> Any:
    if not isinstance(part, Interactions):
        return tmr.data.Split({name: _as_choices(one) for name, one in part.parts.items()}, part.seed)
    items = part.items
    if items is not None:
        part = Interactions.from_frames(
            part.table, users=part.users, items=items.select([name for name in CONTENT if name in items.columns]),
            feedback="explicit", item_name="title" if "title" in items.columns else None, name=part.name,
        )  # fmt: skip
    return distillation.choices(part)


def _over_seeds(rows: pl.DataFrame) -> report.Rows:
    return rows.group_by("classifier", maintain_order=True).agg(pl.exclude("seed").mean()).to_dicts()


def run_choices(options: report.Options, case: choices.Problem, console: Any) -> int:
    """Choices: K interactions, then the whole catalogue."""

    def say(text: str) -> None:
        console.print(text, highlight=False)

    names = [name for name in choices.LEARNERS if name in (options.more["learners"] or choices.LEARNERS)]
    steps = QUICK_STEPS if options.quick else None
    kept = [_file(options, case.name, seed, "users") for seed in range(options.seeds)]
    ablation = _file(options, case.name, 0, "ablation")
    asks_levers = not options.quick and "MAML" in names
    chosen = None
    if not all(file.exists() for file in (*kept, *([ablation] if asks_levers else []))):
        say("learned on a part of the warm users, to choose on the others")
        chosen = choices.choose(case, names, steps, say)
    for seed, file in enumerate(kept):
        if not file.exists():
            assert chosen is not None
            say(f"seed {seed} of {options.seeds}")
            folder = options.more["predictions"]
            written = folder / f"{case.name}-{seed}.parquet" if folder else None
            made = choices.measured(case, chosen, seed, steps, say, written)
            with write_whole(file) as partial:
                made.write_parquet(partial)
    if asks_levers and not ablation.exists():
        assert chosen is not None
        with write_whole(ablation) as partial:
            pl.DataFrame(choices.ablation(case, chosen, steps, say)).write_parquet(partial)
    users = pl.concat([pl.read_parquet(file) for file in kept])
    tables = choices.summary(users)
    learners = [
        name for name in (*names, choices.EARLY, choices.MIXTURE) if name in users["learner"].unique().to_list()
    ]
    judged = choices.verdicts(users, learners)
    figures = {**tables, "Against the best floor": judged}
    if ablation.exists():
        figures["Ablation on validation users"] = pl.read_parquet(ablation).to_dicts()
    is_protocol = case.name == "completejourney" and case.shots == choices.SHOTS and "MAML" in learners
    targets = choices.targets(tables, judged, choices.MIXTURE) if is_protocol else []
    config = {"data": case.name, "users": users["user_id"].n_unique(), "items": case.vocabulary.n_items - 1}
    config |= {"shots": case.shots, "query": case.query, "learners": names, **choices.settings()}
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


def _begin(options: report.Options) -> None:
    """Leaves what an interrupted run has done only where this run would do the same."""
    asked, file = json.dumps({name: str(value) for name, value in options.more.items()}), options.parts / "options.json"
    if options.parts.exists() and not (file.exists() and file.read_text() == asked):
        shutil.rmtree(options.parts)
    options.parts.mkdir(parents=True, exist_ok=True)
    file.write_text(asked)


def _file(options: report.Options, data: str, seed: int, part: str) -> Path:
    return options.parts / f"{data}-{seed}-{part}.parquet"


def _write_predictions(options: report.Options, name: str, frame: pl.DataFrame) -> None:
    folder = options.more["predictions"]
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / f"{name}.parquet") as partial:
        frame.write_parquet(partial)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns its exit status."""
    options = report.read_options(NAME, "New users against the floors.", arguments, seeds=5, own_data=DATA, more=MORE)
    tf.get_logger().setLevel(logging.ERROR)  # It takes the first trace of each learner for retracing one function.
    console = report.console()
    case = load(options.data, options.quick)
    _begin(options)
    run = run_ratings if isinstance(case, ratings.Problem) else run_choices
    status = run(options, case, console)
    shutil.rmtree(options.parts, ignore_errors=True)
    return status


if __name__ == "__main__":
    report.run(main)
