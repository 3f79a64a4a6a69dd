"""A space says what may be tried, in Python and in YAML, and keras-tuner is told the whole of it at once."""

import keras_tuner as kt
import pytest

from tfmetarec.tuning import Choice, Range, holding, read_dimension
from tfmetarec.tuning.space import ask, ordered


def test_what_is_asked_first_are_the_defaults_as_far_as_the_space_allows() -> None:
    space = {
        "rate": Range(0.01, 1.0, log=True),
        "steps": Range(1, 5),
        "support": Choice(([0, 5], [0, 10])),
        "hidden": Choice((None, [], [64])),
        "width": Choice((16, 32)),
    }
    defaults = {"rate": 7.0, "steps": 3, "support": [0, 10], "hidden": None, "width": 999}
    hp = kt.HyperParameters()
    expected = {"rate": 1.0, "steps": 3, "support": [0, 10], "hidden": None, "width": 16}
    assert ask(hp, space, defaults) == expected
    assert ask(hp, space, {}) == expected  # A trial keeps what it was given.
    assert type(ask(hp, space, {})["steps"]) is int


def test_a_range_is_searched_as_it_says() -> None:
    hp = kt.HyperParameters()
    ask(hp, {"a": Range(1e-4, 1.0, log=True), "b": Range(0.0, 0.6, step=0.1), "c": Range(1, 9, step=4)}, {})
    log, stepped, whole = hp.space
    assert log.prob_to_value(0.5) == pytest.approx(1e-2)  # Half way from 1e-4 to 1 in ratios.
    assert [round(stepped.prob_to_value((k + 0.5) / 7), 6) for k in range(7)] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    ask(hp, {"d": Range(0.0, 0.6, step=0.1)}, {"d": 0.3})
    assert hp.space[-1].default in hp.space[-1].values  # A grid would try it twice.
    assert [whole.prob_to_value(p) for p in (0.1, 0.5, 0.9)] == [1, 5, 9]


def test_a_condition_hides_a_name_from_other_trials_and_all_are_declared_at_once() -> None:
    space = ordered({"steps": Range(1, 5, when=("algorithm", ("maml",))), "algorithm": Choice(("ridge", "maml"))})
    hp = kt.HyperParameters()
    assert ask(hp, space, {}) == {"algorithm": "ridge"}
    assert [parameter.name for parameter in hp.space] == ["algorithm", "steps"]
    hp.values |= {"algorithm": '"maml"', "steps": 1}
    assert ask(hp, space, {}) == {"algorithm": "maml", "steps": 1}
    hidden = ordered(
        {
            "kind": Choice(("a", "b")),
            "stepped": Range(0.0, 1.0, step=0.1, when=("kind", ("b",))),
            "lists": Choice(([0], [1]), when=("kind", ("b",))),
        }
    )
    assert ask(kt.HyperParameters(), hidden, {}) == {"kind": "a"}
    numbers = ordered({"a": Choice((1, 2)), "b": Range(0.5, 1.0, when=("a", (2,)))})
    hp = kt.HyperParameters()
    assert ask(hp, numbers, {"a": 2}) == {"a": 2, "b": 0.5}


def test_yaml_spells_ranges_and_choices() -> None:
    assert read_dimension("x", {"min": 0.1, "max": 1, "log": True}) == Range(0.1, 1, log=True)
    assert read_dimension("x", {"min": 2, "max": 8, "step": 2}) == Range(2, 8, step=2)
    assert read_dimension("x", [1, 2]) == Choice((1, 2))
    conditional = {"values": [True, False], "when": {"y": ["a"]}}
    assert read_dimension("x", conditional) == Choice((True, False), when=("y", ("a",)))
    assert read_dimension("x", {"min": 1, "max": 2, "when": {"y": "a"}}) == Range(1, 2, when=("y", ("a",)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"`x`: must be a list, or a mapping with min and max, or with values. Received: 3"),
        ({"min": 1}, r"`x`: a range needs `max`."),
        ({"min": 2, "max": 1}, r"`x`: `high` of a range must be greater than `low`. Received: low=2, high=1"),
        ({"min": 0, "max": 1, "log": True}, r"`x`: a range with `log` must begin above 0. Received: low=0"),
        ({"min": "a", "max": 1}, r"`x`: `low` of a range must be a finite number. Received: low='a'"),
        ({"min": 1, "max": 4, "step": 0.5}, r"`step` of a range of whole numbers must be one too. Received: 0.5"),
        ({"min": 1, "max": 4, "step": 0}, r"`step` of a range must be greater than 0. Received: 0"),
        ({"min": 1, "max": 4, "step": 1, "log": True}, r"`step` of this range must be greater than 1, a ratio"),
        ({"min": 1, "max": 2, "logs": True}, r"`x`: unknown key 'logs'; known: log, max, min, step, when."),
        ([], r"`x`: a choice needs at least one value. Received: none"),
        ([1, 1], r"`x`: a choice must not hold a value twice. Received: 1, 1"),
        ({"min": 1, "max": 4, "step": "2"}, r"`step` of a range must be a number. Received: '2'"),
        ({"min": 1, "max": 4, "log": "no"}, r"`x`: `log` must be true or false. Received: 'no'"),
        ({"values": 3}, r"`x`: `values` must be a list. Received: 3"),
        ({"min": 1, "max": 2, "when": "y"}, r"`x`: `when` must map one name to a list of values. Received: 'y'"),
    ],
)
def test_what_is_no_dimension_is_refused_in_a_sentence(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_dimension("x", given)


def test_conditions_on_what_is_not_there_are_refused() -> None:
    with pytest.raises(
        ValueError, match="`x`: `when` must name a choice without a condition of its own. Received: 'y'"
    ):
        ordered({"x": Range(1, 2, when=("y", (1,)))})
    with pytest.raises(ValueError, match="`x`: `when` needs values of `y`, 1, 2. Received: 3"):
        ordered({"x": Range(1, 2, when=("y", (3,))), "y": Choice((1, 2))})


def test_a_space_is_widened_to_hold_what_is_set() -> None:
    assert holding(Choice((0.0, 1.0, 10.0)), 5) == Choice((0.0, 1.0, 5.0, 10.0))
    assert holding(Choice((16, 32)), 24) == Choice((16, 24, 32))
    assert holding(Choice(([0, 5], [0, 10])), [1, 3]) == Choice(([1, 3], [0, 5], [0, 10]))
    assert holding(Choice(("maml",)), "maml") == Choice(("maml",))
    assert holding(Range(1e-3, 0.5, log=True), 1e-4) == Range(1e-4, 0.5, log=True)
    assert holding(Range(1, 5), 7) == Range(1, 7)
    assert holding(Range(1e-3, 0.5, log=True), 0.0) == Range(1e-3, 0.5, log=True)  # There is no logarithm of it.
    assert holding(Range(1, 5), None) == Range(1, 5)
