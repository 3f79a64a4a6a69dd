"""How results look in a terminal."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from rich.table import Table

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
    """Learners down, K across; the best of each column is bold, the half-width of its interval beside it.

    Args:
        found: what `cold_start` returned.
        metric: the headline one if `None`.
        learners: names of the learners, set apart from the floors.
    """
    metric = found._metric(metric)
    rows = found.summary.filter(pl.col("metric") == metric)
    shots = rows["K"].unique(maintain_order=True).to_list()
    users = rows["users"].max()
    lower = metric in LOWER_IS_BETTER
    table = Table(title=f"{metric} after K interactions ({users} users never seen)", title_justify="left")
    table.add_column("")
    for k in shots:
        table.add_column(f"K={k}", justify="right")
    best = {k: rows.filter(pl.col("K") == k)["mean"] for k in shots}
    names = rows["learner"].unique(maintain_order=True).to_list()
    for name in names:
        cells = []
        for k in shots:
            row = rows.filter((pl.col("learner") == name) & (pl.col("K") == k)).row(0, named=True)
            text = f"{row['mean']:.4f}".replace("0.", ".", 1) + f" ±{(row['high'] - row['low']) / 2:.3f}".replace(
                "0.", "."
            )
            winner = np.isclose(row["mean"], best[k].min() if lower else best[k].max())
            cells.append(f"[bold]{text}[/bold]" if winner else text)
        first_learner = name in learners and names.index(name) > 0 and names[names.index(name) - 1] not in learners
        if first_learner:
            table.add_section()
        table.add_row(name, *cells)
    return table


def recommendation_table(title: str, columns: dict[str, list[tuple[str, float]]]) -> Table:
    """Ranked lists of names and scores side by side."""
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="right")
    for name in columns:
        table.add_column(name, overflow="ellipsis", no_wrap=True)
        table.add_column("score", justify="right")
    for place in range(max(len(column) for column in columns.values())):
        cells: list[str] = [str(place + 1)]
        for column in columns.values():
            name, score = column[place] if place < len(column) else ("", float("nan"))
            cells += [name, f"{score:.2f}" if np.isfinite(score) else ""]
        table.add_row(*cells)
    return table
