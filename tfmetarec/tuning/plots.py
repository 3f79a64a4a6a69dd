"""Pictures of a search: how it went, what mattered, and how the best trials learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.data.whole_file import write_whole
from tfmetarec.tuning.results import epochs_of, trials_table, values_of
from tfmetarec.tuning.space import Choice, Range
from tfmetarec.tuning.tuner import MetaTuner

# Safe for the colour-blind: https://doi.org/10.1038/nmeth.1618
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
GREY = "#888888"
LEAST = 5  # Completed trials that a forest is fitted to.


def importance(tuner: MetaTuner, *, seed: int = 0) -> pl.DataFrame:
    """How much of the objective's differences each name of the space explains, by a random forest.

    The share is that of the forest's decrease in squared error (scikit-learn's `feature_importances_`), and `spread`
    its standard deviation over trees. With few trials it is a hint and no more; with fewer than 5 completed ones the
    table is empty.

    Args:
        tuner: after its search.
        seed: int, of the forest.
    """
    from sklearn.ensemble import RandomForestRegressor

    names, x, y = _as_numbers(tuner)
    if len(y) < LEAST or not names:
        return pl.DataFrame(schema={"name": pl.String, "importance": pl.Float64, "spread": pl.Float64})
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=seed).fit(x, y)
    each = np.array([tree.feature_importances_ for tree in forest.estimators_])
    found = pl.DataFrame({"name": names, "importance": forest.feature_importances_, "spread": each.std(0)})
    return found.sort("importance", descending=True)


def _as_numbers(tuner: MetaTuner) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Values and objectives of completed trials: logarithms of what is searched so, places in a list of choices.

    A value that a trial did not have is -1 below everything else: trees find that by themselves.
    """
    space = tuner.hypermodel.space
    completed = [trial for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"]
    rows = []
    for trial in completed:
        values = values_of(tuner, trial)
        rows.append([_number(space[name], values[name]) if name in values else np.nan for name in space])
    x = np.array(rows, float).reshape(len(rows), len(space))
    low = np.nanmin(x, axis=0, initial=0.0) - 1
    return list(space), np.where(np.isnan(x), low, x), np.array([trial.score for trial in completed], float)


def _number(dimension: Range | Choice, value: Any) -> float:
    if isinstance(dimension, Choice):
        return float(dimension.values.index(value))
    return float(np.log10(value)) if dimension.log else float(value)


def draw(tuner: MetaTuner, folder: Path, rates: tuple[str, str] | None = None, *, seed: int = 0) -> list[Path]:
    """Draws the search into `folder`, each picture as SVG and PNG; what has too few trials is left out.

    `objective`: every trial and the best so far. `importance`: see `importance`. `learning_curves`: of the best five.
    `rates`: the objective over two rates, the inner across and the outer up.

    Args:
        tuner: after its search.
        folder: made if absent.
        rates: names in the space of the inner and the outer learning rate.
        seed: int, of the forests.

    Returns:
        The SVG files.

    Raises:
        ImportError: without matplotlib, saying what to install.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'tfmetarec[report]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Figure] = {}

    def figure(name: str, width: float = 6.4, height: float = 4.0) -> Any:
        made[name] = Figure((width, height), layout="constrained")
        return made[name].subplots()

    table = trials_table(tuner)
    if table["score"].drop_nulls().len() > 0:
        _objective(figure("objective"), table, tuner.oracle.objective)
        _curves(figure("learning_curves"), tuner)
    own = hasattr(tuner.hypermodel, "space")
    if own and (found := importance(tuner, seed=seed)).height:
        _importance(figure("importance", height=1.2 + 0.32 * found.height), found)
    if own and rates is not None and all(name in tuner.hypermodel.space for name in rates):
        points = [
            (values[rates[0]], values[rates[1]], trial.score)
            for trial in tuner.oracle.trials.values()
            if trial.status == "COMPLETED" and rates[0] in (values := values_of(tuner, trial))
        ]
        if len(points) >= LEAST:
            _rates(figure("rates", height=4.6), points, rates, tuner.oracle.objective.name, seed)
    files = []
    for name, drawn in made.items():
        for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 144})):
            with write_whole(folder / f"{name}.{ending}") as partial:
                drawn.savefig(partial, format=ending, **options)
        files.append(folder / f"{name}.svg")
    return files


def _plain_axes(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def _objective(axes: Any, table: pl.DataFrame, objective: Any) -> None:
    scores = table["score"].to_numpy().astype(float)
    numbers = np.arange(1, len(scores) + 1)
    accumulate = np.fmax.accumulate if objective.direction == "max" else np.fmin.accumulate
    axes.plot(numbers, scores, "o", color=COLOURS[0], ms=5, label="a trial")
    axes.step(numbers, accumulate(scores), where="post", color=COLOURS[1], label="best so far")
    failed = numbers[np.isnan(scores)]
    if len(failed):
        low = np.nanmin(scores)
        axes.plot(failed, np.full(len(failed), low), "x", color=GREY, label="failed")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    _plain_axes(axes, "Objective over trials", "trial", objective.name)


def _curves(axes: Any, tuner: MetaTuner) -> None:
    objective = tuner.oracle.objective
    completed = [trial for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"]
    best = sorted(completed, key=lambda trial: trial.score, reverse=objective.direction == "max")
    for colour, trial in zip(COLOURS, best, strict=False):
        figures = [epoch[objective.name] for epoch in epochs_of(tuner, trial)]
        axes.plot(range(1, len(figures) + 1), figures, "o-", ms=3, color=colour, label=f"trial {trial.trial_id}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    _plain_axes(axes, "Learning curves of the best trials", "epoch", objective.name)


def _importance(axes: Any, found: pl.DataFrame) -> None:
    names, shares, spread = (found[name].to_list()[::-1] for name in ("name", "importance", "spread"))
    axes.barh(names, shares, xerr=np.minimum(spread, shares), color=COLOURS[0], error_kw={"ecolor": GREY})
    axes.set_xlim(left=0)
    _plain_axes(axes, "What the objective depends on", "share of a random forest's decrease in error", "")


def _rates(
    axes: Any,
    points: Sequence[tuple[float, float, float]],
    names: tuple[str, str],
    objective: str,
    seed: int,
) -> None:
    """Trials as points over what a forest makes of them in between."""
    from sklearn.ensemble import RandomForestRegressor

    inner, outer, score = np.array(points, float).T
    x = np.log10(np.column_stack([inner, outer]))
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=seed).fit(x, score)
    grid = [np.linspace(column.min() - 0.1, column.max() + 0.1, 60) for column in x.T]
    across, up = np.meshgrid(*grid)
    surface = forest.predict(np.column_stack([across.ravel(), up.ravel()])).reshape(across.shape)
    limits = {"vmin": score.min(), "vmax": score.max(), "cmap": "cividis"}
    axes.pcolormesh(10**across, 10**up, surface, shading="auto", alpha=0.75, rasterized=True, **limits)
    drawn = axes.scatter(inner, outer, c=score, edgecolors="black", s=45, **limits)
    axes.set(xscale="log", yscale="log")
    axes.figure.colorbar(drawn, label=objective)
    _plain_axes(axes, "Inner against outer learning rate", names[0], names[1])
