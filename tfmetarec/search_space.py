"""What a configuration lets a search change: the whole space, as far as it fits, narrowed by `tuning.space`."""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras_tuner

from tfmetarec import transfer, tuning
from tfmetarec.config import Config, ConfigError, value_of, with_values
from tfmetarec.meta import GradientLearner
from tfmetarec.parts import INNER, check_parts, find, parameters_of

SEARCHED = ("training.learning_rate", "training.weight_decay", "training.loss", "training.temperature")


def search_space(config: Config) -> tuple[Config, dict[str, tuning.Dimension]]:
    """What `tuning.space` leaves of the whole space, and the configuration with the values that it fixes.

    Raises:
        ValueError: for a key that is none, or values that a configuration cannot have.
    """
    wanted = config.tuning
    given = {
        name: tuning.read_dimension(f"tuning.space.{name}", value)
        for name, value in wanted.space.items()
        if isinstance(value, dict | list)
    }
    fixed = {name: value for name, value in wanted.space.items() if name not in given and value is not None}
    for name, value in wanted.space.items():
        _check_searched(name, is_dropped=value is None)
    config = with_values(config, fixed)
    space = {**_fitting(config, tuning.SPACE), **given}
    if "meta.algorithm" in given and isinstance(space["meta.algorithm"], tuning.Range):
        raise ConfigError("`tuning.space.meta.algorithm` must be a list of algorithms.")
    if any(name.startswith("meta.inner_learning_rate.") for name in given):
        space.pop("meta.inner_learning_rate", None)  # A rate for each pattern is no rate for all.
    dropped = [name for name, value in wanted.space.items() if value is None]
    if wanted.only is not None:
        if missing := [name for name in wanted.only if name not in space]:
            nearest = difflib.get_close_matches(missing[0], space, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"There are: {', '.join(space)}."
            raise ConfigError(f"`tuning.only` must be names of the space; {hint} Received: {missing[0]!r}")
        dropped += [name for name in space if name not in (*wanted.only, *given)]
    tuning.make_oracle(  # Refuses what it does not take.
        wanted.tuner, keras_tuner.Objective("loss", "min"), trials=1, epochs=1, options=wanted.options
    )
    space = _conditional(config, {name: space[name] for name in space if name not in {*dropped, *fixed}})
    if not space:
        raise ConfigError("`tuning.space` leaves nothing to search.")
    if lost := [name for name in given if name not in space and name not in dropped]:
        raise ConfigError(f"`tuning.space.{lost[0]}`: no algorithm that is tried takes gradient steps.")
    tuning.ordered(space)  # Refuses conditions on what is not there.
    for name, dimension in space.items():
        ends = dimension.values if isinstance(dimension, tuning.Choice) else (dimension.low, dimension.high)
        for condition, value in itertools.product(_conditions(name, dimension, space), ends):
            try:
                check_parts(with_values(config, {**condition, name: value}))
            except ValueError as error:
                raise ConfigError(f"`tuning.space.{name}`: {error}") from None
    return config, space


def _check_searched(name: str, *, is_dropped: bool) -> None:
    """Refuses names that no trial could have a value of its own for."""
    section, _, key = name.partition(".")
    of_trial = {"model", "meta", "tasks", "distillation"} - ({section} if key in ("rival", "teacher") else set())
    if section not in of_trial and name not in SEARCHED:
        raise ConfigError(
            f"`tuning.space.{name}`: a trial differs by keys of model, meta, tasks and distillation, and by "
            f"{', '.join(SEARCHED)}, but not by this one."
        )
    if is_dropped and name not in tuning.SPACE:
        nearest = difflib.get_close_matches(name, tuning.SPACE, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"There are: {', '.join(tuning.SPACE)}."
        raise ConfigError(f"`tuning.space.{name}`: null drops a name that would be searched; {hint}")


def _conditions(name: str, dimension: tuning.Dimension, space: dict[str, tuning.Dimension]) -> Sequence[dict[str, Any]]:
    """What else may be chosen where a dimension is asked for, as far as it matters to it."""
    if dimension.when is not None:
        return [{dimension.when[0]: value} for value in dimension.when[1]]
    algorithms = space.get("meta.algorithm")
    if name.startswith("meta.options.") and isinstance(algorithms, tuning.Choice):
        return [{"meta.algorithm": value} for value in algorithms.values]
    return [{}]


def _fitting(config: Config, space: dict[str, tuning.Dimension]) -> dict[str, tuning.Dimension]:
    """The names of a space that mean something for what is configured."""
    model_options = parameters_of(find("models", config.model.kind))
    distilled, losses = config.distillation, (None, "sampled_softmax")

    def fits(name: str) -> bool:
        section, _, rest = name.partition(".")
        if name == "meta.algorithm":
            return not config.meta.options  # They are those of one algorithm.
        if name == "meta.inner_learning_rate":
            return not isinstance(config.meta.inner_learning_rate, dict)  # A rate for each pattern.
        if name == "training.temperature":
            return config.training.loss in losses
        if name == "distillation.options.temperature":
            named = getattr(transfer, distilled.loss or "", None)
            return distilled.teacher is not None and named is not None and "temperature" in parameters_of(named)
        if section == "distillation":
            return distilled.teacher is not None
        return section != "model" or not rest.startswith("options.") or rest.partition(".")[2] in model_options

    found = {}
    for name, dimension in space.items():
        own = value_of(config, name)
        if not fits(name) or (isinstance(dimension, tuning.Range) and dimension.log and own == 0):
            continue  # There is no logarithm of what is set.
        found[name] = tuning.holding(dimension, own)  # What is set is tried.
    return found


def _conditional(config: Config, space: dict[str, tuning.Dimension]) -> dict[str, tuning.Dimension]:
    """The space in which settings of gradient steps are asked of algorithms alone that take such steps."""
    of_steps = [f"meta.{name}" for name in INNER] + ["meta.options.adaptation_steps"]
    chosen = space.get("meta.algorithm")
    algorithms = chosen.values if isinstance(chosen, tuning.Choice) else (config.meta.algorithm,)
    stepping = tuple(name for name in algorithms if issubclass(find("meta", name), GradientLearner))
    found: dict[str, tuning.Dimension] = {}
    for name, dimension in space.items():
        own = dimension.when is None and (name in of_steps or name.startswith("meta.inner_learning_rate."))
        if own and len(stepping) < len(algorithms):
            if not stepping or chosen is None:
                continue
            dimension = replace(dimension, when=("meta.algorithm", stepping))
        found[name] = dimension
    return found
