"""Learners under keras-tuner's own tuners, and what a configuration makes of a search."""

import keras_tuner as kt
import pytest

import tfmetarec as tmr
from tfmetarec.evaluation import ColdStartValidation
from tfmetarec.tuning import Choice, MetaHyperModel, Range, best_trial, search

OBJECTIVE = kt.Objective("val_ndcg", "max")
TUNERS = {
    "random": (kt.RandomSearch, {"max_trials": 2}),
    "grid": (kt.GridSearch, {"max_trials": 2}),
    "bayesian": (kt.BayesianOptimization, {"max_trials": 2}),
    "hyperband": (kt.Hyperband, {"max_epochs": 2, "factor": 2, "hyperband_iterations": 1}),
}


@pytest.fixture(scope="module")
def split():
    data = tmr.data.load("synthetic", n_users=80, n_items=40, interactions_per_user=8, noise=0.2, seed=0)
    return tmr.data.cold_users(data, seed=0)


@pytest.fixture(scope="module")
def vocabulary(split):
    return tmr.data.Vocabulary.fit(split.train)


@pytest.fixture(scope="module")
def parts(split, vocabulary):
    """How to build, what to fit, and what judges."""

    def build(values):
        learner = tmr.meta.Ridge(
            tmr.models.TwoTower(vocabulary, values["width"], dropout=0.2), contrast=20, seed=values.get("seed", 0)
        )
        learner.compile(optimizer=tmr.optimizers.RowSparseAdam(values["rate"]))
        return learner

    episodes = tmr.tasks.user_episodes(
        split.train, vocabulary, support=(0, 4), query=3, negatives=20, tasks_per_batch=16, seed=0
    )
    return build, episodes, ColdStartValidation(split.validation, shots=(0, 3), query=3, top_k=5)


QUICK = {("hyperband", False), ("random", True)}


def made(parts, **options):
    build, episodes, validation = parts
    space = {"rate": Range(1e-3, 1e-1, log=True), "width": Choice((4, 8))}
    given = {"space": space, "validation": validation, "defaults": {"rate": 0.02, "width": 8}, **options}
    return MetaHyperModel(build, episodes, **given)


# Two that differ in everything are quick enough; the others are slow ones.
WAYS = [
    pytest.param(kind, plain, id=f"{kind}-{name}", marks=() if (kind, plain) in QUICK else pytest.mark.slow)
    for kind in TUNERS
    for name, plain in (("hypermodel", False), ("function", True))
]


@pytest.mark.parametrize(("kind", "plain"), WAYS)
def test_every_tuner_of_keras_tuner_tunes_a_learner(parts, tmp_path, kind, plain):
    tuner_class, options = TUNERS[kind]
    build, episodes, validation = parts

    def own(hp):
        return build({"rate": hp.Float("rate", 1e-3, 1e-1, sampling="log"), "width": hp.Choice("width", [4, 8])})

    hypermodel = own if plain else made(parts)
    tuner = tuner_class(hypermodel, objective=OBJECTIVE, directory=str(tmp_path), seed=1, **options)
    given = {"x": episodes, "callbacks": [validation]} if plain else {}
    tuner.search(**given, verbose=0, **({} if kind == "hyperband" else {"epochs": 1}))
    (best,) = tuner.oracle.get_best_trials(1)
    assert best.status == "COMPLETED"
    assert 0 < best.score <= 1
    assert isinstance(tuner.get_best_models(1)[0], tmr.meta.Ridge)


def test_trials_with_equal_values_are_equal_whatever_came_before(parts, tmp_path):
    figures = []
    for name, trials in (("a", 1), ("b", 2)):
        tuner = search(
            made(parts), objective=OBJECTIVE, folder=tmp_path / name, tuner="random", trials=trials, epochs=2
        )
        figures.append(tmr.tuning.epochs_of(tuner, tuner.oracle.trials["0"]))
    assert figures[0] == figures[1]
    loaded = tuner.load_model(best_trial(tuner))
    logs = {}
    validation = parts[2]
    validation.set_model(loaded)
    validation.on_epoch_end(0, logs)
    assert logs["val_ndcg"] == pytest.approx(best_trial(tuner).score, abs=1e-6)


def test_a_learner_that_diverges_is_told_from_one_that_cannot_be_judged(parts, tmp_path):
    space = {"rate": Choice((0.02, 1e30)), "width": Choice((4,))}
    hypermodel = made(parts, space=space, defaults={"rate": 0.02, "width": 4})
    tuner = search(hypermodel, objective=OBJECTIVE, folder=tmp_path / "s", tuner="grid", trials=2, epochs=2)
    table = tmr.tuning.trials_table(tuner)
    assert table["status"].to_list() == ["completed", "failed"]
    assert table["reason"][1].startswith("diverged: loss was ")


def test_a_hypermodel_has_its_own_data(parts, tmp_path):
    hypermodel = made(parts)
    learner = hypermodel.build(kt.HyperParameters())
    assert learner.model.embedding_dim == 8
    with pytest.raises(ValueError, match="`search` of a `MetaHyperModel` takes no data"):
        hypermodel.fit(kt.HyperParameters(), learner, parts[1])
    with pytest.raises(ValueError, match="`space` must have at least one name. Received: none"):
        made(parts, space={})


def test_episodes_may_depend_on_the_values(parts):
    build, episodes, _ = parts
    asked = []

    def of(values):
        asked.append(values)
        return episodes

    hypermodel = MetaHyperModel(build, of, space={"width": Choice((4, 8)), "rate": Range(0.01, 0.1)})
    hp = kt.HyperParameters()
    hypermodel.fit(hp, hypermodel.build(hp), epochs=1, verbose=0)
    assert asked == [{"width": 4, "rate": 0.01}]


@pytest.mark.parametrize(
    ("metric", "name", "best"),
    [("recall@5", "val_recall@5", "max"), ("recall", "val_recall", "max"), (None, "val_ndcg", "max")],
)
def test_any_metric_can_be_the_objective(parts, split, metric, name, best):
    assert tmr.evaluation.monitor_of("implicit", metric) == (name, best)
    learner = parts[0]({"width": 4, "rate": 0.01})
    options = {"shots": (0, 3), "query": 3, "top_k": 5}
    validation = ColdStartValidation(split.validation, metric=metric, **options)
    validation.set_model(learner)
    logs = {}
    validation.on_epoch_end(0, logs)
    table = tmr.evaluation.cold_start(learner, split.validation, **options)
    wanted = table.pivot(metric if metric and "@" in metric else {"recall": "recall@5"}.get(metric, "ndcg@5"))
    assert logs == {name: pytest.approx((wanted["0"][0] + wanted["3"][0]) / 2)}


def test_a_metric_that_is_none_is_refused(split):
    known = "recall, ndcg, hit_rate, mrr, recall@5, ndcg@5, hit_rate@5, mrr@5"
    with pytest.raises(ValueError, match=f"`metric` must be one of {known}. Received: metric='recall@20'"):
        ColdStartValidation(split.validation, metric="recall@20", shots=(0,), query=3, top_k=5)
    assert tmr.evaluation.monitor_of("explicit", "rmse") == ("val_rmse", "min")
    assert tmr.evaluation.monitor_of("explicit") == ("val_mae", "min")
