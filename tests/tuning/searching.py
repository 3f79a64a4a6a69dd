"""A search of a tiny model that tests run here, and as processes of their own: it keeps a diary, and may die.

`python searching.py FOLDER WORKERS` searches; the environment variable DIE_AT, such as "2:1", is the trial and the epoch
at which the process kills itself, once.
"""

import os
import signal
import sys
from pathlib import Path

import tfmetarec  # noqa: F401  isort: skip  (sets the environment before TensorFlow is loaded)

import keras
import keras_tuner as kt
import numpy as np

from tfmetarec.tuning import MetaTuner, search

X = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
Y = 2 * X + 1


def build(hp: kt.HyperParameters) -> keras.Model:
    """A line, to fit to points on a line."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    rate = hp.Float("rate", 1e-3, 1e-1, sampling="log", default=1e-2)
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)  # Of one small batch: tracing would take longer.
    return model


def fit_line(folder: Path, **options) -> MetaTuner:
    """Searches in `folder`, telling its diary of every epoch before that is saved."""

    def tell(trial: str, epoch: int, value: float) -> None:
        with (folder / "diary").open("a") as diary:
            diary.write(f"{trial}:{epoch}\n")
        died = folder / "died"
        if os.environ.get("DIE_AT") == f"{trial}:{epoch}" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    given = {"tuner": "random", "trials": 4, "epochs": 3, "prune": False, "seed": 3, **options}
    data = {"x": X, "y": Y, "validation_data": (X, Y)}
    objective = kt.Objective("val_loss", "min")
    return search(build, objective=objective, folder=folder / "search", tell=tell, **given, **data)


if __name__ == "__main__":
    command = [sys.executable, *sys.argv]
    fit_line(Path(sys.argv[1]), workers=int(sys.argv[2]), worker_command=command)
