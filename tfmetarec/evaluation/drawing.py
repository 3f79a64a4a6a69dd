"""Figures in one style: safe for the colour-blind, readable on light and dark pages, as SVG and PNG."""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmetarec.data.whole_file import write_whole

# Okabe and Ito's colours, https://doi.org/10.1038/nmeth.1618: the first is for what a figure is about.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#888888"
LONGEST = 34  # Name beside a bar, in letters.
_WIDE = 54  # Letters of a line over the width of a figure.
_INK = "#123457"  # Whatever is drawn in it takes the colour of the page's text.
_STYLE = {
    "svg.fonttype": "none",  # Text stays text: it can be read aloud, searched and scaled.
    "svg.hashsalt": "tfmetarec",  # Equal figures are equal files.
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
}


class Drawing:
    """A figure to draw on, with what a reader who cannot see it is told.

    Args:
        alt: what the figure shows, in a sentence.
        width: inches. A phone shows the default one whole, with letters of ten pixels.
        height: inches.

    Attributes:
        axes: of matplotlib.

    Raises:
        ImportError: without matplotlib, saying what to install.
    """

    def __init__(self, alt: str, width: float = 4.6, height: float = 3.4):
        try:
            import matplotlib as mpl
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("figures need matplotlib: pip install 'tfmetarec[report]'") from error
        self.alt, self._context = alt, mpl.rc_context
        with self._context(_STYLE):
            self.figure = Figure((width, height), layout="constrained")
            self.figure.patch.set_alpha(0)
            self.axes: Any = self.figure.subplots()

    def label(self, title: str, x: str, y: str) -> None:
        """Names the figure and its axes."""
        # Both may be wider than the axes, beside which there may be long names: they have the width of the figure.
        self.figure.suptitle(textwrap.fill(title, _WIDE), x=0.01, ha="left", fontsize=11, color=_INK)
        self.axes.set_xlabel(textwrap.fill(x, _WIDE), loc="right" if len(x) > _WIDE // 2 else "center")
        self.axes.set_ylabel(y)

    def legend(self) -> None:
        """Says what the marks are, in columns under the figure, which grows by its rows."""
        marks, names = self.axes.get_legend_handles_labels()
        names = [cut(name, _WIDE) for name in names]
        across = max(1, min(3, len(names), 66 // (max(map(len, names)) + 7)))
        width, height = self.figure.get_size_inches()
        self.figure.set_size_inches(width, height + 0.18 * -(-len(names) // across))
        style = {"frameon": False, "fontsize": 8.5, "labelcolor": _INK}
        self.figure.legend(marks, names, loc="outside lower left", ncols=across, **style)

    def scale(self, drawn: Any, label: str) -> None:
        """What the colours of `drawn` mean."""
        bar = self.figure.colorbar(drawn)
        bar.set_label(label, color=_INK)
        bar.ax.tick_params(colors=_INK)

    def count_across(self) -> None:
        """Marks the axis across at whole numbers alone."""
        from matplotlib.ticker import MaxNLocator

        self.axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    def svg(self) -> str:
        """The figure to be put into a page: text in the page's own colour."""
        written = io.StringIO()
        with self._context(_STYLE):
            self.figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
        text = written.getvalue()
        return text[text.index("<svg") :].replace(_INK, "currentColor")

    def save(self, folder: Path, name: str) -> Path:
        """Writes `name.svg` and `name.png`, dark on white; returns the first."""
        folder.mkdir(parents=True, exist_ok=True)
        for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
            with self._context(_STYLE), write_whole(folder / f"{name}.{ending}") as partial:
                self.figure.savefig(partial, format=ending, facecolor="white", **options)
        return folder / f"{name}.svg"


def save_all(drawings: Mapping[str, Drawing], folder: Path) -> list[Path]:
    """Writes every drawing under its name; returns the SVG files."""
    return [drawing.save(folder, name) for name, drawing in drawings.items()]


def lines(
    alt: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str, str],
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    muted: Sequence[str] = (),
    whole: bool = False,
) -> Drawing:
    """Lines over one axis.

    Args:
        alt: what the figure shows.
        series: name -> x and y.
        labels: title, x and y.
        bands: name -> lower and upper ends of intervals.
        muted: names of lines that stand in grey behind the others, each with its name at its end.
        whole: whether x counts something.
    """
    drawing = Drawing(alt)
    axes = drawing.axes
    dashes = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
    for number, name in enumerate(muted):
        x, y = series[name]
        axes.plot(x, y, linestyle=dashes[number % len(dashes)], color=GREY, lw=1.3, label=name)
    bold = [name for name in series if name not in muted]
    # Seven marks and six colours: as many lines as one likes, no two alike until there are 42.
    for name, colour, marker in zip(bold, itertools.cycle(COLOURS), itertools.cycle("os^Dv*P"), strict=False):
        x, y = series[name]
        axes.plot(x, y, marker=marker, ms=4, color=colour, lw=2, label=name)
        if bands is not None and name in bands:
            axes.fill_between(x, *bands[name], color=colour, alpha=0.15, lw=0)
    if whole:
        drawing.count_across()
    drawing.legend()
    drawing.label(*labels)
    return drawing


def histogram(alt: str, values: np.ndarray, labels: tuple[str, str, str], bins: int = 30) -> Drawing:
    """How differences spread around 0: above it in the first colour, below in the second."""
    drawing = Drawing(alt)
    most = float(np.abs(values).max(initial=0.0)) or 1.0
    counts, edges = np.histogram(values, bins=np.linspace(-most, most, 2 * (bins // 2) + 2))
    centres = (edges[1:] + edges[:-1]) / 2
    width = edges[1] - edges[0]
    colours = [GREY if abs(c) < width / 2 else COLOURS[0] if c > 0 else COLOURS[1] for c in centres]
    drawing.axes.bar(centres, counts, width=0.92 * width, color=colours)
    drawing.label(*labels)
    return drawing


def bars(
    alt: str,
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    labels: tuple[str, str, str],
    *,
    intervals: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Drawing:
    """Bars side by side for each of the names, from the top down.

    Args:
        alt: what the figure shows.
        names: of the groups; long ones are cut.
        values: series -> one value a group.
        labels: title, x and y.
        intervals: series -> lower and upper ends of intervals.
    """
    drawing = Drawing(alt, height=1.1 + 0.26 * len(names) * max(len(values), 1))
    height = 0.8 / max(len(values), 1)
    places = np.arange(len(names))
    for number, (series, row) in enumerate(values.items()):
        colour = COLOURS[0] if number == 0 else GREY if number == 1 else COLOURS[(number - 1) % len(COLOURS)]
        drawing.axes.barh(places + number * height, row, height=0.92 * height, color=colour, label=series)
        if intervals is not None and series in intervals:
            low, high = (np.asarray(end, float) for end in intervals[series])
            drawing.axes.hlines(places + number * height, low, high, color=_INK, lw=1.2)
    labels_beside = [cut(name, LONGEST) for name in names]
    drawing.axes.set_yticks(places + 0.4 - height / 2, labels=labels_beside, fontsize=9)
    edge = 0.2 + height / 2
    drawing.axes.set_ylim(len(names) - 0.2 - height + edge, -edge)  # From the top down, no wider apart for being many.
    if len(values) > 1:
        drawing.legend()
    drawing.label(*labels)
    return drawing


def cut(name: str, longest: int) -> str:
    """A name in at most so many letters.

    Example:
    >>> cut("strawberries", 6)
    'straw…'
    """
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def plain(value: Any) -> str:
    """A figure as tables show it: four digits, no leading zero."""
    if value is None or value != value:
        return "-"
    text = f"{value:.4f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
