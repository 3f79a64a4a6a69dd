"""Pictures of a search: how it went, what mattered, and how the best trials learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from tfmetarec.evaluation.drawing import COLOURS, GREY, LONGEST, Drawing, cut, lines
from tfmetarec.tuning.results import epochs_of, trials_table, values_of
from tfmetarec.tuning.space import Choice, Range
from tfmetarec.tuning.tuner import MetaTuner

LEAST = 5  # Completed trials that a forest is fitted to.


def importance(tuner: MetaTuner, *, seed: int = 0) -> pl.DataFrame:
    """How much of the objective's differences each name of the space explains, by a random forest.

    The share is that of the forest's decrease in squared error (scikit-learn's `feature_importances_`), and `spread`
    its standard deviation over trees. With few trials it is a hint and no more; with fewer than 5 completed ones the
    table is empty.

    Args:
        tuner: after its search.
        seed: int, of the forest.

    Raises:
        ValueError: if the tuner's hypermodel is no `MetaHyperModel`, whose space is known.
    """
    from sklearn.ensemble import RandomForestRegressor

    if not hasattr(tuner.hypermodel, "space"):
        raise ValueError(f"`tuner` must search a `MetaHyperModel`. Received: {type(tuner.hypermodel).__name__}")
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
    completed, rows = _completed(tuner), []
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


def drawings(tuner: MetaTuner, rates: tuple[str, str] | None = None, *, seed: int = 0) -> dict[str, Drawing]:
    """Pictures of a search by name; what has too few trials is left out.

    `objective`: every trial and the best so far. `rates`: the objective over two rates, the inner across and the outer
    up. `importance`: see `importance`. `learning_curves`: of the best five.

    Args:
        tuner: after its search.
        rates: names in the space of the inner and the outer learning rate.
        seed: int, of the forests.

    Raises:
        ImportError: without matplotlib, saying what to install.
    """
    table, objective = trials_table(tuner), tuner.oracle.objective
    if table["score"].drop_nulls().is_empty():
        return {}
    made = {"objective": _objective(table, objective)}
    if hasattr(tuner.hypermodel, "space"):
        if rates is not None and all(name in tuner.hypermodel.space for name in rates):
            points = [
                (values[rates[0]], values[rates[1]], trial.score)
                for trial in _completed(tuner)
                if rates[0] in (values := values_of(tuner, trial))
            ]
            if len(points) >= LEAST:
                made["rates"] = _rates(points, rates, objective.name, seed)
        if (found := importance(tuner, seed=seed)).height:
            made["importance"] = _importance(found)
    made["learning_curves"] = _curves(tuner)
    return made


def _completed(tuner: MetaTuner) -> list[Any]:
    return [trial for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"]


def _objective(table: pl.DataFrame, objective: Any) -> Drawing:
    scores = table["score"].to_numpy().astype(float)
    numbers = np.arange(1, len(scores) + 1)
    accumulate = np.fmax.accumulate if objective.direction == "max" else np.fmin.accumulate
    best = accumulate(scores)
    drawing = Drawing(f"{objective.name} of {len(scores)} trials in their order; the best is {best[-1]:.4f}.")
    axes = drawing.axes
    axes.plot(numbers, scores, "o", color=COLOURS[0], ms=5, label="a trial")
    axes.step(numbers, best, where="post", color=COLOURS[1], label="best so far")
    if len(failed := numbers[np.isnan(scores)]):
        axes.plot(failed, np.full(len(failed), np.nanmin(scores)), "x", color=GREY, label="failed")
    drawing.count_across()
    drawing.legend()
    drawing.label("Objective over trials", "trial", objective.name)
    return drawing


def _curves(tuner: MetaTuner) -> Drawing:
    objective = tuner.oracle.objective
    best = sorted(_completed(tuner), key=lambda trial: trial.score, reverse=objective.direction == "max")
    series = {}
    for trial in best[:5]:
        figures = [epoch[objective.name] for epoch in epochs_of(tuner, trial)]
        series[f"trial {trial.trial_id}"] = (range(1, len(figures) + 1), figures)
    labels = ("Learning curves of the best trials", "epoch", objective.name)
    return lines(f"{objective.name} by epoch of the {len(series)} best trials.", series, labels, whole=True)


def _importance(found: pl.DataFrame) -> Drawing:
    names, shares, spread = (found[name].to_list()[::-1] for name in ("name", "importance", "spread"))
    alt = f"What a random forest says the objective depends on, {names[-1]} most."
    drawing = Drawing(alt, height=1.2 + 0.3 * len(names))
    drawing.axes.barh(names, shares, xerr=np.minimum(spread, shares), color=COLOURS[0], error_kw={"ecolor": GREY})
    drawing.axes.set_yticks(range(len(names)), labels=[cut(name, LONGEST) for name in names], fontsize=9)
    drawing.axes.set_xlim(left=0)
    drawing.label("What the objective depends on", "share of a random forest's decrease in error", "")
    return drawing


def _rates(points: Sequence[tuple[float, float, float]], names: tuple[str, str], objective: str, seed: int) -> Drawing:
    """Trials as points over what a forest makes of them in between."""
    from sklearn.ensemble import RandomForestRegressor

    inner, outer, score = np.array(points, float).T
    x = np.log10(np.column_stack([inner, outer]))
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=seed).fit(x, score)
    grid = [np.linspace(column.min() - 0.1, column.max() + 0.1, 60) for column in x.T]
    across, up = np.meshgrid(*grid)
    surface = forest.predict(np.column_stack([across.ravel(), up.ravel()])).reshape(across.shape)
    drawing = Drawing(
        f"{objective} of {len(score)} trials over {names[0]} and {names[1]}, both in logarithms.", height=4.6
    )
    limits = {"vmin": score.min(), "vmax": score.max(), "cmap": "cividis"}
    drawing.axes.pcolormesh(10**across, 10**up, surface, shading="auto", alpha=0.75, rasterized=True, **limits)
    drawn = drawing.axes.scatter(inner, outer, c=score, edgecolors="black", s=45, **limits)
    drawing.axes.set(xscale="log", yscale="log")
    drawing.scale(drawn, objective)
    drawing.label("Inner against outer learning rate", names[0], names[1])
    return drawing
