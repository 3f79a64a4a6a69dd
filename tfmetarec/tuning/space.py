"""What a search may change: ranges and choices by name, and how keras-tuner is told of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras_tuner as kt

Condition = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included; whole numbers if both ends are.

    Args:
        low: int or float, finite.
        high: int or float, greater than `low`.
        log: whether equal ratios are equally far apart; needs `low` above 0.
        step: only every so many from `low` on; a ratio if `log`. Defaults to any number, or any whole number.
        when: a name in the same space and values of it: only with one of these is the range searched.

    Raises:
        ValueError: if the ends are out of order, or `log` has nothing to take the logarithm of.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    when: Condition | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"`{name}` of a range must be a finite number. Received: {name}={value!r}")
        if not self.low < self.high:
            raise ValueError(
                f"`high` of a range must be greater than `low`. Received: low={self.low}, high={self.high}"
            )
        if self.log and not self.low > 0:
            raise ValueError(f"a range with `log` must begin above 0. Received: low={self.low}")
        if self.step is not None and (isinstance(self.step, bool) or not isinstance(self.step, int | float)):
            raise ValueError(f"`step` of a range must be a number. Received: {self.step!r}")
        if self.step is not None and not self.step > (1 if self.log else 0):
            least = "greater than 1, a ratio" if self.log else "greater than 0"
            raise ValueError(f"`step` of {'this' if self.log else 'a'} range must be {least}. Received: {self.step!r}")
        if self.whole and self.step is not None and not float(self.step).is_integer():
            raise ValueError(f"`step` of a range of whole numbers must be one too. Received: {self.step!r}")

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ask(self, hp: kt.HyperParameters, name: str, default: Any) -> Any:
        """The value of a trial, `None` where keras-tuner holds it for hidden; `default` is that of the first one."""
        default = self.low if default is None else min(max(default, self.low), self.high)
        options = {"sampling": "log" if self.log else "linear", "default": default}
        if self.whole:
            step = int(self.step) if self.step is not None else None if self.log else 1
            return hp.Int(name, self.low, self.high, **{**options, "step": step, "default": round(default)})
        if self.step is None:
            return hp.Float(name, float(self.low), float(self.high), **options)
        # keras-tuner counts steps by a division, which may fall short of the last one by a rounding error, and holds
        # 3 * 0.1 for another value than 0.3.
        high = self.high * (1 + 1e-9) if self.log else self.high + 1e-6 * self.step
        if not self.log:
            on_grid = self.low + round((default - self.low) / self.step) * self.step
            options["default"] = on_grid if abs(on_grid - default) < 1e-9 else default
        asked = hp.Float(name, float(self.low), high, step=self.step, **options)
        return None if asked is None else round(asked, 9)


@dataclass(frozen=True)
class Choice:
    """One of a few values of any kind that JSON knows: numbers, strings, lists, `None`.

    Args:
        values: at least one; none twice.
        when: as for `Range`.

    Raises:
        ValueError: if there are none, or one comes twice.
    """

    values: tuple[Any, ...]
    when: Condition | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        written = [json.dumps(value) for value in self.values]
        if not written:
            raise ValueError("a choice needs at least one value. Received: none")
        if len(set(written)) < len(written):
            raise ValueError(f"a choice must not hold a value twice. Received: {', '.join(written)}")

    def ask(self, hp: kt.HyperParameters, name: str, default: Any) -> Any:
        """The value of a trial; `default`, or the first where that is none of the values, is that of the first one."""
        known = json.dumps(default) in map(json.dumps, self.values)
        asked = hp.Choice(name, self.raw(self.values), default=self.raw([default if known else self.values[0]])[0])
        return asked if self._is_numbers or asked is None else json.loads(asked)

    def raw(self, values: Sequence[Any]) -> list[Any]:
        """Values of this choice as keras-tuner has them: it knows scalars of one kind alone.

        Numbers stay numbers, since they have an order; all else becomes JSON.
        """
        if not self._is_numbers:
            return [json.dumps(value) for value in values]
        kind = type(self.values[0])
        return [kind(value) for value in values]

    @property
    def _is_numbers(self) -> bool:
        return type(self.values[0]) in (int, float) and len({*map(type, self.values)}) == 1


Dimension = Range | Choice
"""What one name of a space may be."""


def holding(dimension: Dimension, value: Any) -> Dimension:
    """The dimension, made wider where it has to be to hold a value; `None` is no value."""
    if value is None:
        return dimension
    if isinstance(dimension, Choice):
        if json.dumps(value) in map(json.dumps, dimension.values):
            return dimension
        values = (value, *dimension.values)
        if all(type(one) in (int, float) for one in values):
            kind = float if any(type(one) is float for one in values) else int
            values = tuple(sorted(kind(one) for one in values))
        return replace(dimension, values=values)
    if dimension.low <= value <= dimension.high or (dimension.log and value <= 0):
        return dimension
    return replace(dimension, low=min(dimension.low, value), high=max(dimension.high, value))


# The names are keys of a configuration, and so `tfmetarec tune` understands them; in Python a name is only a name.
SPACE: dict[str, Dimension] = {
    "meta.algorithm": Choice(("maml", "anil", "meta_sgd", "ridge")),
    "training.learning_rate": Range(1e-4, 1e-2, log=True),
    "training.weight_decay": Range(1e-3, 0.5, log=True),
    "training.temperature": Range(0.3, 3.0, log=True),
    "meta.inner_learning_rate": Range(1e-2, 10.0, log=True),
    "meta.inner_steps": Range(1, 5),
    "meta.options.adaptation_steps": Range(1, 10),
    "meta.shrinkage": Choice((0.0, 1.0, 3.0, 10.0, 20.0, 50.0)),
    "tasks.support": Choice(([0, 5], [0, 10], [0, 20], [0, 40])),
    "model.embedding_dim": Choice((16, 32, 64, 128)),
    "model.options.user_hidden": Choice(([], [32], [64])),
    "model.options.item_hidden": Choice((None, [], [64])),
    "model.dropout": Range(0.0, 0.6, step=0.1),
    "model.id_dropout": Range(0.0, 0.9, step=0.1),
    "distillation.alpha": Range(0.0, 1.0, step=0.1),
    "distillation.options.temperature": Range(0.5, 5.0, log=True),
}
"""What is searched where nothing else is said."""


def read_dimension(name: str, given: Any) -> Dimension:
    """A range or a choice as YAML spells it: `{min: 0.01, max: 1, log: true}`, or a list.

    Args:
        name: of what is searched, for the error.
        given: a mapping with `min` and `max` and, if wanted, `log`, `step`, `when`; one with `values` and `when`; or a
            list.

    Raises:
        ValueError: naming the key, the rule and what came.
    """
    if isinstance(given, list):
        given = {"values": given}
    if not isinstance(given, dict):
        raise ValueError(
            f"`{name}`: must be a list, or a mapping with min and max, or with values. Received: {given!r}"
        )
    takes = {"values", "when"} if "values" in given else {"min", "max", "log", "step", "when"}
    if unknown := sorted(set(map(str, given)) - takes):
        raise ValueError(f"`{name}`: unknown key {unknown[0]!r}; known: {', '.join(sorted(takes))}.")
    options = {"when": _read_condition(name, given["when"])} if given.get("when") is not None else {}
    try:
        if "values" in given:
            if not isinstance(given["values"], list):
                raise ValueError(f"`values` must be a list. Received: {given['values']!r}")
            return Choice(tuple(given["values"]), **options)
        if missing := [key for key in ("min", "max") if key not in given]:
            raise ValueError(f"a range needs `{missing[0]}`.")
        if not isinstance(log := given.get("log", False), bool):
            raise ValueError(f"`log` must be true or false. Received: {log!r}")
        return Range(given["min"], given["max"], log, given.get("step"), **options)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def _read_condition(name: str, given: Any) -> Condition:
    if not isinstance(given, dict) or len(given) != 1:
        raise ValueError(f"`{name}`: `when` must map one name to a list of values. Received: {given!r}")
    ((parent, values),) = given.items()
    return str(parent), tuple(values if isinstance(values, list) else [values])


def ordered(space: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """The space with every name after the one that its condition asks for.

    Raises:
        ValueError: if a condition asks for a name or a value that the space does not have.
    """
    for name, dimension in space.items():
        if dimension.when is None:
            continue
        parent, values = dimension.when
        if not isinstance(space.get(parent), Choice) or space[parent].when is not None:
            raise ValueError(
                f"`{name}`: `when` must name a choice without a condition of its own. Received: {parent!r}"
            )
        known = [json.dumps(value) for value in space[parent].values]  # type: ignore[union-attr]
        for value in values:
            if json.dumps(value) not in known:
                raise ValueError(
                    f"`{name}`: `when` needs values of `{parent}`, {', '.join(known)}. Received: {value!r}"
                )
    return dict(sorted(space.items(), key=lambda item: item[1].when is not None))


def ask(hp: kt.HyperParameters, space: Mapping[str, Dimension], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial has been given, by name: of dimensions whose condition holds.

    Every dimension is declared at once, whatever the trial's values, so that several workers share one space.

    Args:
        hp: of the trial.
        space: in the order of `ordered`.
        defaults: of the first trial; a name that is missing gets the lowest of a range, or the first of a choice.
    """
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        if dimension.when is None:
            values[name] = dimension.ask(hp, name, defaults.get(name))
            continue
        parent, wanted = dimension.when
        choice = space[parent]
        assert isinstance(choice, Choice)  # `ordered` has seen to it.
        with hp.conditional_scope(parent, choice.raw(wanted)):
            value = dimension.ask(hp, name, defaults.get(name))
        if values[parent] in wanted:
            values[name] = value
    return values
