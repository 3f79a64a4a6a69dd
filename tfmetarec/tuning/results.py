"""What a search has found: a row for each trial, and the same for TensorBoard."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow as tf

from tfmetarec.tuning.stopping import history
from tfmetarec.tuning.tuner import OUTCOME, MetaTuner


def best_trial(tuner: MetaTuner) -> Any:
    """The completed trial with the best objective, the earliest of equals.

    Raises:
        RuntimeError: if no trial was completed, with what each died of.
    """
    completed = [trial for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"]
    if completed:
        sign = 1 if tuner.oracle.objective.direction == "max" else -1
        return max(completed, key=lambda trial: sign * trial.score)
    failed = [(trial_id, _outcome(tuner, trial_id)["reason"]) for trial_id in tuner.oracle.end_order]
    if not failed:
        raise RuntimeError("no trial was finished: there was no time for one.")
    told = "; ".join(f"trial {trial_id}: {reason}" for trial_id, reason in failed[:5])
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    raise RuntimeError(f"all {len(failed)} trials failed, so there is nothing to choose from. {told}{more}")


def trials_table(tuner: MetaTuner) -> pl.DataFrame:
    """A row for each trial, in the order in which they began.

    Columns: `trial`, `status`, `score` (of the best epoch), `epochs` (trained, those of a trial that it goes on from
    included), `best_epoch` (from 1 on), `seconds`, `reason` (why it failed), `goes_on_from` (a trial that Hyperband
    promoted), and `values`: what was searched, as JSON.
    """
    rows = []
    for trial_id in tuner.oracle.start_order:
        trial = tuner.oracle.trials[trial_id]
        figures = [epoch[tuner.oracle.objective.name] for epoch in history(tuner.trial_folder(trial_id))]
        outcome, done = _outcome(tuner, trial_id), trial.status == "COMPLETED"
        pick = max if tuner.oracle.objective.direction == "max" else min
        rows.append(
            {
                "trial": trial_id,
                "status": trial.status.lower(),
                "score": trial.score if done else None,
                "epochs": len(figures),
                "best_epoch": figures.index(pick(figures)) + 1 if figures and done else None,
                "seconds": outcome["seconds"],
                "reason": outcome["reason"],
                "goes_on_from": trial.hyperparameters.values.get("tuner/trial_id"),
                "values": json.dumps(values_of(tuner, trial)),
            }
        )
    kinds = {"score": pl.Float64, "best_epoch": pl.Int64, "seconds": pl.Float64}
    texts = dict.fromkeys(("trial", "status", "reason", "goes_on_from", "values"), pl.String)
    return pl.DataFrame(rows, schema_overrides={**kinds, **texts})


def ranked(trials: pl.DataFrame, objective: Any, most: int = 10) -> list[dict[str, str]]:
    """The best trials of a table as text: `trial`, the objective by name, `epoch` (best of trained), `s`, `values`."""
    done = trials.filter(pl.col("status") == "completed")
    done = done.sort("score", descending=objective.direction == "max", maintain_order=True).head(most)
    return [
        {
            "trial": row["trial"],
            objective.name: f"{row['score']:.4f}",
            "epoch": f"{row['best_epoch']}/{row['epochs']}",
            "s": "" if row["seconds"] is None else f"{row['seconds']:.0f}",
            "values": in_words(row["values"]),
        }
        for row in done.iter_rows(named=True)
    ]


def in_words(values: str) -> str:
    """Values in JSON by the last parts of their names: "inner_steps 3, dropout 0.2"."""

    def short(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')

    return ", ".join(f"{name.rpartition('.')[2]} {short(value)}" for name, value in json.loads(values).items())


def values_of(tuner: MetaTuner, trial: Any) -> dict[str, Any]:
    """What a trial was given, by the names of the space."""
    hp = trial.hyperparameters.copy()
    named = getattr(tuner.hypermodel, "values", None)
    if named is not None:
        return named(hp)
    return {name: value for name, value in hp.values.items() if not name.startswith("tuner/")}


def epochs_of(tuner: MetaTuner, trial: Any) -> list[dict[str, float]]:
    """What each epoch of a trial logged."""
    return history(tuner.trial_folder(trial.trial_id))


def write_tensorboard(tuner: MetaTuner, folder: Path) -> None:
    """Writes every finished trial for TensorBoard's HParams page: values, and the objective by epoch and at best."""
    from tensorboard.plugins.hparams import api

    objective = tuner.oracle.objective.name
    for trial_id in tuner.oracle.end_order:
        trial, own = tuner.oracle.trials[trial_id], folder / f"trial_{trial_id}"
        if own.exists():
            continue
        partial = own.with_name(f".{own.name}.writing")
        shutil.rmtree(partial, ignore_errors=True)
        writer = tf.summary.create_file_writer(str(partial))
        with writer.as_default():
            api.hparams({name: _plain(value) for name, value in values_of(tuner, trial).items()}, trial_id=trial_id)
            for epoch, figures in enumerate(epochs_of(tuner, trial), 1):
                tf.summary.scalar(objective, figures[objective], step=epoch)
            if trial.score is not None:
                tf.summary.scalar(f"best_{objective}", trial.score, step=0)
        writer.close()
        partial.rename(own)


def _plain(value: Any) -> Any:
    """Lists and nothing as text: TensorBoard knows numbers, booleans and strings."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _outcome(tuner: MetaTuner, trial_id: str) -> Mapping[str, Any]:
    file = tuner.trial_folder(trial_id) / OUTCOME
    return json.loads(file.read_text()) if file.exists() else {"seconds": None, "reason": None}
