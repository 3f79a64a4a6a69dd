"""A page of results that people look at: one HTML file that needs no network, and its figures as files."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from tfmetarec.data.interactions import Interactions
from tfmetarec.data.vocabulary import Vocabulary
from tfmetarec.data.whole_file import write_whole
from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.cold_start import LOWER_IS_BETTER, ColdStartTable, Recommender, questions
from tfmetarec.evaluation.drawing import Drawing, cut, histogram, lines, plain, save_all
from tfmetarec.tasks.table import TaskTable

TEMPLATE = Path(__file__).with_name("report.html.template")
_LONGEST = 60  # Name of an item in a list, in letters.
_WORD = re.compile(r"[^\W\d_]{2}|;")  # Or a list of names that are numbers.


@dataclass
class TableOf:
    """Rows under a heading.

    Attributes:
        caption: what the rows are.
        columns: headings.
        rows: cells as text.
        bold: places (row, column) of cells that stand out.
        strong: rows that the page is about.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()
    strong: frozenset[int] = frozenset()

    def kind(self, column: int) -> str:
        """Of a column: "" for figures, "text" for words, "text long" for those that may need more than one line."""
        cells = [row[column] for row in self.rows]
        if max(map(len, cells), default=0) > 24:
            return "text long"
        return "text" if any(_WORD.search(cell) for cell in cells) else ""


@dataclass
class Section:
    """A part of the page, in the order text, tables, figures.

    Attributes:
        title: heading.
        text: paragraphs, plain.
        tables: of figures.
        drawings: name of the file -> figure.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[TableOf] = ()
    drawings: Mapping[str, Drawing] = field(default_factory=dict)


def write_report(path: Path, title: str, about: Sequence[tuple[str, str]], sections: Sequence[Section]) -> list[Path]:
    """Writes the page, and each figure as SVG and PNG into a folder of the same name.

    Args:
        path: of the HTML file; its folder is made if absent.
        title: of the page.
        about: names and values under the title: data, seed, versions.
        sections: of the page, those with nothing in them left out.

    Returns:
        The page, then the SVG files.

    Raises:
        ImportError: without jinja2 or matplotlib, saying what to install.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ImportError("a report needs jinja2: pip install 'tfmetarec[report]'") from error
    shown = [section for section in sections if section.text or section.tables or section.drawings]
    drawings = {name: drawing for section in shown for name, drawing in section.drawings.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    files = save_all(drawings, path.with_suffix(""))
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text())
    figures = {name: _figure(name, drawing) for name, drawing in drawings.items()}
    text = page.render(title=title, about=about, sections=shown, figures=figures)
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return [path, *files]


def _figure(name: str, drawing: Drawing) -> str:
    """A figure as markup: an image with its alternative text, whose ids no other figure has."""
    svg = drawing.svg().replace('id="', f'id="{name}-').replace('"#', f'"#{name}-').replace("(#", f"(#{name}-")
    label = html.escape(drawing.alt, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def headline(table: ColdStartTable, learners: Sequence[str], metric: str | None = None) -> Section:
    """The table of learners and floors with intervals, and what each comparison with the best floor comes to.

    Args:
        table: of test users.
        learners: names of those that are no floors, the one that the page is about last.
        metric: of the table; the headline one if `None`.
    """
    metric = table.metric_name(metric)
    rows = table.summary.filter(pl.col("metric") == metric)
    shots = rows["K"].unique(maintain_order=True).to_list()
    names = rows["learner"].unique(maintain_order=True).to_list()
    value = {(row["learner"], row["K"]): row for row in rows.iter_rows(named=True)}
    pick = min if metric in LOWER_IS_BETTER else max
    best = {k: pick(value[name, k]["mean"] for name in names) for k in shots}
    cells, bold = [], set()
    for i, name in enumerate(names):
        line = [name]
        for j, k in enumerate(shots, 1):
            one = value[name, k]
            line.append(f"{plain(one['mean'])} ±{plain((one['high'] - one['low']) / 2)}")
            if one["mean"] == best[k]:
                bold.add((i, j))
        cells.append(line)
    strong = frozenset(i for i, name in enumerate(names) if name in learners)
    caption = f"{metric} after K interactions, {rows['users'][0]} users never seen; {table.confidence:.0%} intervals"
    caption += "; lower is better." if metric in LOWER_IS_BETTER else "."
    found = TableOf(caption, ["", *(f"K={k}" for k in shots)], cells, frozenset(bold), strong)
    lower = metric in LOWER_IS_BETTER
    said = []
    if len(learners) < len(names):
        for k in shots:
            floor = table.best_floor(k, learners, metric)
            compared = table.compare(learners[-1], floor, k, metric)
            said.append(f"K={k}: {compared.verdict(learners[-1], floor, higher_is_better=not lower)}")
    return Section("Users never seen", [*table.notes, *said], [found], {"adaptation": _adaptation(rows, learners)})


def side_by_side(tables: Mapping[str, ColdStartTable], notes: Sequence[str] = ()) -> Section:
    """Every learner and floor of several runs in one table: means of the headline metric, the best of each K in bold.

    Runs that were judged by another metric have a table of their own.

    Args:
        tables: name of a run -> its table.
        notes: paragraphs before the tables.
    """
    metrics_of = {name: table.metric_name() for name, table in tables.items()}
    shown = []
    for metric in dict.fromkeys(metrics_of.values()):
        wide = {name: table.pivot(metric) for name, table in tables.items() if metrics_of[name] == metric}
        shots = sorted({k for table in wide.values() for k in table.columns[1:]}, key=int)
        rows = [
            (name, row["learner"], [row.get(k) for k in shots])
            for name, table in wide.items()
            for row in table.iter_rows(named=True)
        ]
        pick = min if metric in LOWER_IS_BETTER else max
        best = [pick(value for row in rows if (value := row[2][j]) is not None) for j in range(len(shots))]
        bold = {(i, j + 2) for i, row in enumerate(rows) for j, value in enumerate(row[2]) if value == best[j]}
        cells = [[name, learner, *map(plain, values)] for name, learner, values in rows]
        columns = ["run", "learner", *(f"K={k}" for k in shots)]
        caption = f"{metric} after K interactions{'; lower is better' if metric in LOWER_IS_BETTER else ''}"
        shown.append(TableOf(caption, columns, cells, frozenset(bold)))
    return Section("Side by side", notes, shown)


def _adaptation(rows: pl.DataFrame, learners: Sequence[str]) -> Drawing:
    metric = rows["metric"][0]
    series, spread, muted = {}, {}, []
    for (name,), own in rows.group_by("learner", maintain_order=True):
        series[str(name)] = (own["K"].to_list(), own["mean"].to_list())
        if name in learners:
            spread[str(name)] = (own["low"].to_list(), own["high"].to_list())
        else:
            muted.append(str(name))
    bold = {name: series.pop(name) for name in reversed(learners)}
    alt = f"{metric} by the number of interactions K: {', '.join(bold)} in colour, {len(muted)} floors in grey."
    labels = ("What a few interactions are worth", "interactions K", metric)
    return lines(alt, {**series, **bold}, labels, bands=spread, muted=muted, whole=True)


def gains(table: ColdStartTable, learner: str, learners: Sequence[str], metric: str | None = None) -> Section:
    """Who wins and who loses: what each user gains over the best floor, at the largest K.

    Args:
        table: of test users.
        learner: whose gains.
        learners: names of all that are no floors.
        metric: of the table; the headline one if `None`.
    """
    metric, names = table.metric_name(metric), table.per_user["learner"].unique()
    if len(names) <= len(learners):
        return Section("Who wins, who loses")
    k = int(table.per_user["K"].max())  # type: ignore[arg-type]
    floor = table.best_floor(k, learners, metric)
    difference = table.by_user(learner, k, metric) - table.by_user(floor, k, metric)
    gain = -difference if metric in LOWER_IS_BETTER else difference
    won, lost = float((gain > 0).mean()), float((gain < 0).mean())
    told = f"At K={k}, {learner} is better than {floor} for {won:.0%} of users and worse for {lost:.0%}."
    labels = (f"Gain over {floor}, K={k}", f"{metric}, to the right {learner} is better", "users")
    return Section("Who wins, who loses", [told], [], {"gains": histogram(told, gain, labels)})


def training(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Section:
    """Loss and validation figure by epoch.

    Args:
        histories: name of a learner -> what its epochs logged.
    """
    drawn: dict[str, Drawing] = {}
    keys = list(dict.fromkeys(key for history in histories.values() for key in (history[0] if history else ())))
    for key in ["loss", *(key for key in keys if key.startswith("val_") and key != "val_loss")]:
        series = {
            name: (range(1, len(history) + 1), [epoch[key] for epoch in history])
            for name, history in histories.items()
            if history and key in history[0]
        }
        if series:
            alt = f"{key} by epoch of {', '.join(series)}."
            shown = "loss in training" if key == "loss" else f"{key.removeprefix('val_')} on validation users"
            drawn[f"training-{key}"] = lines(alt, series, (shown, "epoch", key), whole=True)
    return Section("Training", (), (), drawn)


def neighbours(vectors: np.ndarray, names: Sequence[str], rows: Sequence[int], most: int = 5) -> TableOf:
    """The items whose vectors point the same way, for a few items.

    Args:
        vectors: `(I, D)`, of the catalogue.
        names: of its `I` items.
        rows: items to ask for; row 0, which is no item, is never found.
        most: how many to list.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    likeness = unit[list(rows)] @ unit.T
    likeness[:, 0] = -np.inf
    likeness[np.arange(len(rows)), list(rows)] = -np.inf
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : min(most, len(names) - 2)]
    lists = [
        [
            cut(names[row], _LONGEST),
            "; ".join(f"{cut(names[other], _LONGEST)} ({likeness[i, other]:.2f})" for other in nearest[i]),
        ]
        for i, row in enumerate(rows)
    ]
    return TableOf("Items with the most similar vectors (cosine)", ["item", "nearest"], lists)


def example(learner: Recommender, interactions: Interactions, vocabulary: Vocabulary, shots: int = 5) -> Section:
    """What one user is recommended before and after each interaction.

    Args:
        learner: that adapts and scores.
        interactions: of users never seen. The first user with more than `shots` items in the catalogue is taken; if
            nobody has, the first with the most.
        vocabulary: of the catalogue.
        shots: interactions to show, in time order where there is one.
    """
    known = pl.Series(vocabulary.item_ids[1:].tolist())
    in_known = pl.col("item_id").is_in(known.implode())
    met = interactions.table.filter(in_known).group_by("user_id")
    count = met.agg(pl.col("item_id").n_unique().clip(upper_bound=shots + 1)).filter(pl.col("item_id") > 1)
    count = count.sort(["item_id", "user_id"], descending=[True, False])
    if count.is_empty():
        return Section("One user")
    user, shots = count["user_id"][0], count["item_id"][0] - 1
    one = interactions.filter(in_known & (pl.col("user_id") == user))
    table = TaskTable.build(one, vocabulary, min_interactions=shots + 1)
    slots, names = (
        table.start[:-1, None] + np.arange(shots + 1),
        [cut(name, _LONGEST) for name in vocabulary.item_names],
    )
    # Where there are ratings, the rows of a table are not those of the catalogue.
    in_catalogue = vocabulary.item_rows(table.items.ids)[table.item]
    rows = []
    for k in range(shots + 1):
        ((_, question),) = questions(table, slots, k, shots)
        scores = np.array(learner.score(learner.adapt(question.support), vocabulary.catalogue), np.float32)
        scores[:, 0] = -np.inf
        top = metrics.top_items(scores, min(5, len(names) - 1), exclude=in_catalogue[question.seen], seed=0)[0]
        last = "nothing yet"
        if k:
            place = slots[0, k - 1]
            rating = f" ({table.label[place]:g})" if vocabulary.specs.feedback == "explicit" else ""
            last = f"{names[in_catalogue[place]]}{rating}"
        rows.append([last, "; ".join(names[row] for row in top if row)])
    what = "what they rated, and how" if vocabulary.specs.feedback == "explicit" else "what they met"
    caption = f"User {user}: {what}, one after another, and the best items of the catalogue after that."
    return Section("One user", (), [TableOf(caption, ["met", "recommended then"], rows)])
