"""How results look in a terminal."""

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from tfmetarec.data.splits import Split
from tfmetarec.evaluation.cold_start import LOWER_IS_BETTER, ColdStartTable
from tfmetarec.evaluation.drawing import plain
from tfmetarec.evaluation.examination import SHORT, Examination
from tfmetarec.tuning import MetaTuner, best_trial, in_words, ranked, trials_table


def split_table(split: Split, title: str) -> Table:
    """Users, items and rows of every part."""
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for name in split.counts.columns[1:]:
        table.add_column(name, justify="right")
    for part, *counts in split.counts.iter_rows():
        table.add_row(part, *(f"{count:,}" for count in counts))
    return table


def cold_start_table(found: ColdStartTable, metric: str | None = None, learners: Sequence[str] = ()) -> Table:
    """Learners down, K across, the best of each column in bold; the caption says how wide the intervals are.

    Args:
        found: what `cold_start` returned.
        metric: the headline one if `None`.
        learners: names of the learners, set apart from the floors.
    """
    wide = found.pivot(metric)
    metric = found.metric_name(metric)
    rows = found.summary.filter(pl.col("metric") == metric)
    half_width = float(((rows["high"] - rows["low"]) / 2).to_numpy().max())
    table = Table(
        title=f"{metric} after K interactions, {rows['users'][0]} users never seen",
        caption=f"95 % intervals over users: at most ±{half_width:.4f}. Bold: best of the column.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    best = {}
    for k in wide.columns[1:]:
        table.add_column(f"K={k}", justify="right", no_wrap=True)
        best[k] = wide[k].min() if metric in LOWER_IS_BETTER else wide[k].max()
    floors = [row for row in wide.iter_rows(named=True) if row["learner"] not in learners]
    for row in floors:
        table.add_row(row["learner"], *_cells(row, best))
    if floors:
        table.add_section()
    for row in wide.filter(pl.col("learner").is_in(list(learners))).iter_rows(named=True):
        table.add_row(row["learner"], *_cells(row, best))
    return table


def _cells(row: dict, best: dict) -> list[Text]:
    """Means with four digits and no leading zero, as they are usually printed."""
    return [Text(f"{row[k]:.4f}".replace("0.", ".", 1), "bold" if row[k] == best[k] else "") for k in best]


def examination_tables(found: Examination, learners: Sequence[str] = ()) -> list[Table]:
    """What `evaluate` shows beside the table of means: figures of lists and probabilities, and the four states.

    Args:
        found: what `examine` returned.
        learners: names of the learners, set apart from the floors.
    """
    names = [name for name in found.figures.columns[1:] if found.figures[name].null_count() < found.figures.height]
    table = Table(title=f"Beyond the mean, K={found.about['K']}", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(SHORT.get(name, name), justify="right", no_wrap=True)
    _two_parts(table, found.figures, names, learners)
    if found.states.is_empty():
        return [table]
    wide = found.by_state()
    caption = "New items are ranked among themselves, known ones among all known."
    states = Table(
        title=f"{found.about['metric']} in the four states, K={found.about['K']}",
        title_justify="left",
        caption=caption if found.about["positive_rating"] is None else None,
        caption_justify="left",
    )
    states.add_column("")
    for name in wide.columns[1:]:
        states.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    _two_parts(states, wide, wide.columns[1:], learners)
    return [table, states]


def _two_parts(table: Table, figures: pl.DataFrame, names: Sequence[str], learners: Sequence[str]) -> None:
    """Floors, a line, and learners."""
    is_learner = pl.col("learner").is_in(list(learners))
    for part in (figures.filter(~is_learner), figures.filter(is_learner)):
        for row in part.iter_rows(named=True):
            table.add_row(row["learner"], *(plain(row[name]) for name in names))
        table.add_section()


def recommendation_table(title: str, columns: dict[str, list[tuple[str, float]]], width: int) -> Table:
    """Ranked lists of names and scores side by side.

    Args:
        title: over the table.
        columns: heading -> names and scores, best first.
        width: of the terminal; names are cut to fit it.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="right", no_wrap=True)
    name_width = max(12, (width - 6) // len(columns) - 12)
    for name in columns:
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=name_width)
        table.add_column("score", justify="right", no_wrap=True)
    for place in range(max(len(column) for column in columns.values())):
        cells: list[str] = [str(place + 1)]
        for column in columns.values():
            cells += [column[place][0], f"{column[place][1]:.2f}"] if place < len(column) else ["", ""]
        table.add_row(*cells)
    return table


def trial_line(tuner: MetaTuner, trial: Any) -> str:
    """What came of a trial that has just ended, and the best so far."""
    oracle = tuner.oracle
    name = f"trial {trial.trial_id} ({len(oracle.end_order)} of {oracle.max_trials})"
    if trial.status != "COMPLETED":
        own = trials_table(tuner).filter(pl.col("trial") == trial.trial_id)
        return f"{name}: failed, {own['reason'][0]}"
    best = best_trial(tuner)
    return f"{name}: {oracle.objective.name} {trial.score:.4f}, best {best.score:.4f} (trial {best.trial_id})"


def search_table(trials: pl.DataFrame, objective: Any, rows: int = 10) -> Table:
    """The best trials of a search first, then those that failed, with the values that were tried.

    Args:
        trials: as `tfmetarec.tuning.trials_table` has them.
        objective: of the search.
        rows: the most of either.
    """
    best = ranked(trials, objective, rows)
    failed = trials.filter(pl.col("status") == "failed")
    title = f"{objective.name} of {(trials['status'] == 'completed').sum()} trials on validation users"
    table = Table(title=title, title_justify="left")
    for heading in ("trial", objective.name, "epoch", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("values")
    for row in best:
        table.add_row(*row.values())
    if failed.height:
        table.add_section()
    for trial in failed.head(rows).iter_rows(named=True):
        table.add_row(trial["trial"], "failed", "", "", f"{trial['reason']}\n{in_words(trial['values'])}")
    return table
