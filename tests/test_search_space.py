"""What a configuration makes of a search."""

import json
import re
from pathlib import Path

import keras_tuner as kt
import pytest
import yaml

from tfmetarec import experiment
from tfmetarec.config import ConfigError, load
from tfmetarec.tuning import SPACE, Choice, Range


def space_of(*overrides):
    return experiment.search_space(load(None, overrides))[1]


def test_the_whole_space_is_what_fits_the_configuration() -> None:
    space = space_of()
    assert set(SPACE) - set(space) == {"distillation.alpha", "distillation.options.temperature"}
    gradient = ("maml", "anil", "meta_sgd")
    for name in ("inner_learning_rate", "inner_steps", "shrinkage", "options.adaptation_steps"):
        assert space[f"meta.{name}"].when == ("meta.algorithm", gradient)
    assert space["training.learning_rate"].when is None


def test_what_is_configured_is_always_tried() -> None:
    space = space_of("meta.algorithm=reptile", "tasks.support=[1, 3]")
    assert space["meta.algorithm"].values == ("reptile", "maml", "anil", "meta_sgd", "ridge")
    assert space["tasks.support"].values[0] == [1, 3]
    space = space_of("meta.shrinkage=5", "meta.inner_steps=8", "training.learning_rate=0.05")
    assert 5.0 in space["meta.shrinkage"].values
    assert space["meta.inner_steps"].high == 8
    assert space["training.learning_rate"].high == 0.05


def test_what_an_algorithm_or_a_model_does_not_take_is_left_out() -> None:
    space = space_of("meta.algorithm=ridge", "tuning.space={meta.algorithm: null}")
    assert [name for name in space if name.startswith("meta.")] == []
    space = space_of("model.kind=ranker")
    assert "model.options.user_hidden" not in space
    assert "model.embedding_dim" in space
    assert "meta.algorithm" not in space_of("meta.options={proximal: 0.1}", "meta.algorithm=reptile")
    assert "training.temperature" not in space_of("training.loss=binary_crossentropy")


def test_yaml_narrows_fixes_drops_and_adds() -> None:
    config, space = experiment.search_space(
        load(
            None,
            [
                "tuning.space={training.learning_rate: {min: 0.001, max: 0.01, log: true}, model.embedding_dim: 16, "
                "model.dropout: null, meta.contrast: [512, 2048]}",
                "tuning.only=[training.learning_rate, meta.inner_steps]",  # What is added stays.
            ],
        )
    )
    assert space == {
        "training.learning_rate": Range(0.001, 0.01, log=True),
        "meta.contrast": Choice((512, 2048)),
        "meta.inner_steps": Range(1, 5),  # Of the one algorithm: there is no other.
    }
    assert config.model.embedding_dim == 16


def test_a_rate_for_each_layer_is_searched_instead_of_one_for_all() -> None:
    space = space_of("tuning.space={meta.inner_learning_rate.level: {min: 0.1, max: 5, log: true}}")
    assert "meta.inner_learning_rate" not in space
    assert space["meta.inner_learning_rate.level"].when == ("meta.algorithm", ("maml", "anil", "meta_sgd"))


def test_settings_of_steps_are_refused_where_nothing_takes_steps() -> None:
    with pytest.raises(
        ConfigError, match="`tuning.space.meta.inner_steps`: no algorithm that is tried takes gradient s"
    ):
        space_of("meta.algorithm=ridge", "tuning.space={meta.algorithm: null, meta.inner_steps: [1, 2]}")


def test_what_has_no_logarithm_is_left_as_it_is() -> None:
    assert "training.weight_decay" not in space_of("training.weight_decay=0")


def test_the_space_of_the_docs_is_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "tuning.md").read_text()
    (written,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.S)
    config = load(None, [f"tuning={json.dumps(yaml.safe_load(written)['tuning'])}"])
    fixed, space = experiment.search_space(config)
    assert set(space) == {
        "meta.algorithm",
        "training.learning_rate",
        "model.embedding_dim",
        "meta.contrast",
        "meta.options.proximal",
        "meta.inner_learning_rate.dense",
        "meta.inner_learning_rate.level",
    }
    assert fixed.meta.inner_steps == 3


def test_a_learner_is_built_with_a_rate_for_each_layer() -> None:
    ranges = ", ".join(
        f"meta.inner_learning_rate.{name}: {{min: 0.1, max: 5.0, log: true}}" for name in ("dense", "level")
    )
    config = small(f"tuning.space={{{ranges}}}", "tuning.only=[]", "model.options.user_hidden=[4]")
    hypermodel = experiment.hyper_model(config, experiment.prepare(config))
    learner = hypermodel.build(kt.HyperParameters())
    assert learner.inner_learning_rate == {"dense": 2.0, "level": 2.0}  # Where the rate for all was.


def test_rates_that_are_configured_by_pattern_stay_as_they_are() -> None:
    space = space_of("meta.inner_learning_rate={tower: 0.5, level: 1.0}")
    assert not [name for name in space if name.startswith("meta.inner_learning_rate")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tuning.space={meta.inner_step: [1, 2]}",
            "`tuning.space.meta.inner_step`: unknown key `meta.inner_step`; did",
        ),
        ("tuning.space={meta.inner_steps: {min: 0, max: 2}}", "`tuning.space.meta.inner_steps`: .* Received: 0"),
        ("tuning.space={meta.options.proximity: [1, 2]}", "`tuning.space.meta.options.proximity`: unknown key"),
        ("tuning.space={meta.algorithm: [maml, mamel]}", "nothing in `meta` is called 'mamel'; did you mean 'maml'?"),
        ("tuning.space={model.dropout: {min: 0}}", "`tuning.space.model.dropout`: a range needs `max`."),
        (
            "tuning.only=[meta.inner_stepps]",
            "`tuning.only` must be names of the space; did you mean 'meta.inner_steps'?",
        ),
        ("tuning.only=[]", "`tuning.space` leaves nothing to search."),
        (
            "tuning.space={seed: [0, 1]}",
            "`tuning.space.seed`: a trial differs by keys of model, meta, tasks and distill",
        ),
        ("tuning.space={training.epochs: 2}", "`tuning.space.training.epochs`: a trial differs by .*not by this one"),
        ("tuning.space={meta.rival: [maml]}", "`tuning.space.meta.rival`: a trial differs by"),
        ("tuning.space={model.embeding_dim: null}", "null drops a name .*; did you mean 'model.embedding_dim'?"),
        ("tuning.space={meta.options.proximal: [1.0, 2.0]}", "`tuning.space.meta.options.proximal`: unknown key"),
        (
            "tuning.space={meta.options.proximal: {values: [1.0], when: {meta.algorithm: [maml]}}}",
            "`tuning.space.meta.options.proximal`: unknown key",
        ),
        (
            "tuning.space={model.dropout: {min: 0.1, max: 0.2, when: {x: [1]}}}",
            "`model.dropout`: `when` must name a cho",
        ),
        ("tuning.options={max_trials: 3}", "`options` of the tuner: `max_trials` is told by `trials`."),
        ("tuning.tuner=tpe", "`tuning.tuner`: input should be 'bayesian', 'random', 'grid', 'hyperband' or 'sklearn'"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_its_key(override, message) -> None:
    with pytest.raises(ValueError, match=message):
        space_of(override)


def small(*overrides, feedback="implicit"):
    data = {"n_users": 60, "n_items": 60, "interactions_per_user": 12, "seed": 0, "feedback": feedback}
    judged = "evaluation={shots: [0, 3], query: 4, top_k: 5}"
    given = [f"data={{source: synthetic, options: {data}}}", "vocabulary.min_item_users=1", judged]
    return load(None, [*given, *overrides])


def test_ratings_have_no_temperature() -> None:
    config = small(feedback="explicit")
    prepared = experiment.prepare(config)
    assert "training.temperature" not in experiment.hyper_model(config, prepared).space
    with pytest.raises(ConfigError, match="`training.temperature` is that of choices, and these data are ratings"):
        experiment.build_learner(small("training.temperature=2", feedback="explicit"), prepared.vocabulary)
    with pytest.raises(ConfigError, match="`training.temperature` is that of the sampled softmax. Received: .*=mse"):
        experiment.prepare(small("training.temperature=2", "training.loss=mse"))


def test_the_first_trial_is_what_is_configured() -> None:
    config = small("meta.algorithm=anil", "training.weight_decay=0.01")
    prepared = experiment.prepare(config)
    hypermodel = experiment.hyper_model(config, prepared)
    hp = kt.HyperParameters()
    values = hypermodel.values(hp)
    assert values["meta.algorithm"] == "anil"
    assert values["training.weight_decay"] == 0.01
    assert values["meta.options.adaptation_steps"] == config.meta.inner_steps
    assert values["training.temperature"] == 1.0
    assert values["model.options.item_hidden"] is None
    learner, same = hypermodel.build(hp), experiment.build_learner(config, prepared.vocabulary)
    assert type(learner) is type(same)
    assert learner.optimizer.weight_decay == 0.01
    assert [v.shape for v in learner.trainable_variables] == [v.shape for v in same.trainable_variables]
