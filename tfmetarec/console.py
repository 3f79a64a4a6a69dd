"""How results look in a terminal."""

from collections.abc import Sequence

import polars as pl
from rich.table import Table
from rich.text import Text

from tfmetarec.data.splits import Split
from tfmetarec.evaluation.cold_start import LOWER_IS_BETTER, ColdStartTable


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
