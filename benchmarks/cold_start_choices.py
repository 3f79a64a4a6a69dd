"""Households that buy, and the whole catalogue to rank: the part of `cold_start` for implicit feedback."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import polars as pl
import scipy.stats

import tfmetarec as tmr
from benchmarks import report
from benchmarks.cold_start_ratings import MIN_CATEGORY_USERS, joined
from tfmetarec.data import Interactions, Split, Vocabulary
from tfmetarec.evaluation import ColdStartTable, fitted_floors, metrics, paired_bootstrap, ratings_of
from tfmetarec.evaluation.cold_start import in_order, questions
from tfmetarec.models.baselines import EASE
from tfmetarec.tasks import Support
from tfmetarec.tasks.table import TaskTable
from tfmetarec.transfer.mixture import Mixture

SHOTS, QUERY, TOP_K = (0, 1, 3, 5, 10, 20), 20, 20
AVERAGED = SHOTS[1:]  # The protocol's targets are of these.
MIN_ITEM_USERS = 10
FLOORS = ("popularity", "item-KNN", "EASE", "iALS fold-in")
LEARNERS = ("fine-tuning", "Ridge", "MAML")
EARLY = "early EASE"  # No floor: nobody had measured it before.
MIXTURE = "mixture"
MEMBERS = ("MAML", "Ridge", EARLY, "iALS fold-in")
# One configuration for all choices, chosen on validation households of Complete Journey.
TOWER = {"embedding_dim": 32, "dropout": 0.3, "id_dropout": 0.7}
GRADIENT = {"inner_steps": 3, "inner_learning_rate": 2.0, "shrinkage": 20.0, "contrast": 2048}
EPISODES = {"support": (0, 20), "query": 20, "tasks_per_batch": 32, "negatives": 2048, "early": 16.0}
OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 0.05}
EARLY_EASE = {"regularization": 800.0, "early": 120.0, "prior": 0.04}
EPOCHS, PATIENCE = 20, 3
TOLD_EPOCHS, TOLD_REGULARIZATION = 12, 1500.0  # Of what tells films rated from films drawn: supports are long there.
TOLD_EASE = f"EASE, regularization {TOLD_REGULARIZATION:.0f}"
METRICS = (f"recall@{TOP_K}", f"ndcg@{TOP_K}")
# Measured before, untuned: the best floor at each K, averaged over the five K; 10 % above it is the target.
GOAL = {f"recall@{TOP_K}": 1.1 * 0.0532, f"ndcg@{TOP_K}": 1.1 * 0.0685}

Say = Callable[[str], None]


class Problem(NamedTuple):
    """Interactions, split by users; `warm` is `train` and `validation` together, `least` the users an item needs."""

    name: str
    split: Split
    warm: Interactions
    vocabulary: Vocabulary
    shots: tuple[int, ...]
    query: int
    least: int


def problem(interactions: Interactions, least: int = MIN_ITEM_USERS) -> Problem:
    """A fifth of the users is held out, and a tenth to choose on; shorter shots where users have too few choices."""
    split = tmr.data.cold_users(interactions, seed=0)
    ids = pl.concat([split.train.table["user_id"], split.validation.table["user_id"]]).unique()
    warm = interactions.filter(pl.col("user_id").is_in(ids.implode()))
    vocabulary = vocabulary_of(warm, least)
    met = split.validation.table.group_by("user_id").agg(pl.col("item_id").n_unique().alias("n"))["n"].to_numpy()
    typical = int(np.quantile(met, 0.5))
    if typical >= max(SHOTS) + QUERY:
        return Problem(interactions.name, split, warm, vocabulary, SHOTS, QUERY, least)
    query = max(1, min(QUERY, typical // 2))
    shots = tuple(k for k in SHOTS if k <= max(1, typical - query))
    return Problem(interactions.name, split, warm, vocabulary, shots, query, least)


def vocabulary_of(learn: Interactions, least: int) -> Vocabulary:
    return Vocabulary.fit(learn, min_item_users=least, min_category_users=MIN_CATEGORY_USERS)


def judged(recommenders: dict[str, Any], part: Interactions, case: Problem, **options: Any) -> ColdStartTable:
    """The protocol, for any of the parts."""
    return tmr.evaluation.cold_start(
        recommenders, part, vocabulary=case.vocabulary, shots=case.shots, query=case.query, top_k=TOP_K, **options
    )


def learner_of(name: str, vocabulary: Vocabulary, seed: int, **changed: Any) -> Any:
    """An untrained learner, in the one configuration or with something changed."""
    model = tmr.models.TwoTower(vocabulary, **{**TOWER, **changed}, seed=seed)
    if name == "Ridge":
        learner: Any = tmr.meta.Ridge(model, contrast=GRADIENT["contrast"], seed=seed)
    else:
        learner = {"fine-tuning": tmr.meta.FineTuning, "MAML": tmr.meta.MAML}[name](model, **GRADIENT, seed=seed)
    learner.compile(optimizer=keras.optimizers.AdamW(**OPTIMIZER))
    return learner


def episodes_of(part: Interactions, vocabulary: Vocabulary, seed: int, steps: int | None, **changed: Any) -> Any:
    options = {**EPISODES, **changed}
    if "timestamp" not in part.table.columns:
        options["early"] = 1.0
    return tmr.tasks.user_episodes(part, vocabulary, **options, steps_per_epoch=steps, seed=seed)


def trained(
    name: str, case: Problem, seed: int, steps: int | None, *, vocabulary: Vocabulary | None = None, **changed: Any
) -> tuple[Any, int, float]:
    """A learner trained on `train`, the epochs validation users liked best, and how well they did."""
    vocabulary = vocabulary or case.vocabulary
    of_episodes = {key: changed.pop(key) for key in list(changed) if key in EPISODES}
    learner = learner_of(name, vocabulary, seed, **changed)
    monitor, mode = tmr.evaluation.monitor_of("implicit", METRICS[1])
    asking = tmr.evaluation.ColdStartValidation(
        case.split.validation, shots=AVERAGED if case.shots == SHOTS else case.shots, query=case.query, top_k=TOP_K,
        metric=METRICS[1],
    )  # fmt: skip
    stopping = keras.callbacks.EarlyStopping(monitor, patience=PATIENCE, mode=mode, restore_best_weights=True)
    episodes = episodes_of(case.split.train, vocabulary, seed, steps, **of_episodes)
    history = learner.fit(episodes, epochs=EPOCHS if steps is None else 2, callbacks=[asking, stopping], verbose=0)
    best = int(np.argmax(history.history[monitor]))
    return learner, best + 1, float(history.history[monitor][best])


def refitted(name: str, case: Problem, epochs: int, seed: int, steps: int | None) -> Any:
    """The same on all warm users, for as many epochs."""
    learner = learner_of(name, case.vocabulary, seed)
    learner.fit(episodes_of(case.warm, case.vocabulary, seed, steps), epochs=epochs, verbose=0)
    return learner


def asked(part: Interactions, case: Problem, seed: int = 0) -> tuple[Support, np.ndarray]:
    """All K of the protocol as one support, and the rows that were taken next."""
    most = max(case.shots)
    table = TaskTable.build(part, case.vocabulary, min_interactions=most + case.query)
    slots = in_order(table, most + case.query, None, seed)
    supports, taken = [], []
    for k in case.shots:
        for _, question in questions(table, slots, k, most):
            supports.append(question.support)
            taken.append(table.item[question.query])
    return Support(*(joined([support[place] for support in supports]) for place in range(4))), joined(taken)


class Chosen(NamedTuple):
    """What validation users decided, once for all seeds, and what does not depend on a seed.

    Attributes:
        rehearsal: learners and baselines by name, learned on `train` alone.
        values: of the learners among them, on validation users.
        epochs: for which the learners are to be trained.
        gate: of the mixture, `(2, M)`.
        fixed: baselines by name, fitted on all warm users.
    """

    rehearsal: dict[str, Any]
    values: dict[str, float]
    epochs: dict[str, int]
    gate: np.ndarray
    fixed: dict[str, Any]


def early_ease(part: Interactions, vocabulary: Vocabulary, **changed: Any) -> EASE:
    """EASE in its one configuration or with something changed, fitted; all places count alike without timestamps."""
    options = {**EARLY_EASE, **changed}
    if "timestamp" not in part.table.columns:
        options["early"] = None
    return EASE(**options).fit(ratings_of(part, vocabulary))


def baselines(part: Interactions, vocabulary: Vocabulary) -> dict[str, Any]:
    """The floors, and the early EASE."""
    return {**fitted_floors(part, vocabulary), EARLY: early_ease(part, vocabulary)}


def mixed(members: dict[str, Any], vocabulary: Vocabulary, names: Any = MEMBERS) -> Mixture:
    """The mixture of those of its members that are there."""
    return Mixture({name: members[name] for name in names if name in members}, vocabulary)


def choose(case: Problem, names: Any, steps: int | None, say: Say) -> Chosen:
    """Learned on a part of the warm users, to choose on the others."""
    rehearsal, values, epochs = baselines(case.split.train, case.vocabulary), {}, {}
    for name in names:
        start = time.perf_counter()
        rehearsal[name], epochs[name], values[name] = trained(name, case, 0, steps)
        taking = time.perf_counter() - start
        say(f"  {name}: {values[name]:.4f} on validation users after {epochs[name]} epochs, {taking:.0f} s")
    support, taken = asked(case.split.validation, case)
    mixture = mixed(rehearsal, case.vocabulary).fit(support, {"item_id": taken})
    for k in case.shots:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in mixture.weights(k).items())
        say(f"  weights at K={k}: {shares}")
    return Chosen(rehearsal, values, epochs, mixture.gate, baselines(case.warm, case.vocabulary))


def measured(
    case: Problem, chosen: Chosen, seed: int, steps: int | None, say: Say, predictions: Path | None
) -> pl.DataFrame:
    """One seed: learned on all warm users as chosen, then the test users are asked once."""
    found = dict(chosen.fixed)
    for name, epochs in chosen.epochs.items():
        start = time.perf_counter()
        found[name] = refitted(name, case, epochs, seed, steps)
        say(f"  {name}: {epochs} epochs on all warm users, {time.perf_counter() - start:.0f} s")
    found[MIXTURE] = mixed(found, case.vocabulary)
    found[MIXTURE].gate = chosen.gate
    written = {} if predictions is None else {"predictions": predictions}
    table = judged(found, case.split.test, case, **written, seed=seed)
    return table.per_user.with_columns(seed=pl.lit(seed))


def without(interactions: Interactions, side: str) -> Interactions:
    """The same without the features of items or of users."""
    kept = {"users": interactions.users, "items": interactions.items, side: None}
    table = (
        interactions.table
        if interactions.schema.feedback == "explicit"
        else interactions.table.drop("label", strict=False)
    )
    return Interactions.from_frames(table, **kept, feedback=interactions.schema.feedback, name=interactions.name)


def ablation(case: Problem, chosen: Chosen, steps: int | None, say: Say) -> report.Rows:
    """What each lever is worth on validation users, one seed: means over K."""
    rows: report.Rows = []

    def row(variant: str, ndcg: float, recall: float | None = None) -> None:
        rows.append({"variant": variant, f"ndcg@{TOP_K}, validation": ndcg, f"recall@{TOP_K}, validation": recall})
        say(f"  ablation, {variant}: {ndcg:.4f}" + ("" if recall is None else f", recall {recall:.4f}"))

    def judge(parts: list[tuple[Any, Interactions]]) -> list[float]:
        """nDCG and recall of recommenders, each on its users."""
        tables = [judged({"it": recommender}, users, case) for recommender, users in parts]
        users = pl.concat([table.per_user for table in tables]).filter(pl.col("K").is_in(AVERAGED))
        return [float(users[_column(tables[0], metric)].to_numpy().mean()) for metric in ("ndcg", "recall")]

    row("MAML, as configured", chosen.values["MAML"])
    for side in ("items", "users"):
        parts = {name: without(part, side) for name, part in case.split.parts.items()}
        less = case._replace(split=Split(parts), warm=without(case.warm, side))
        vocabulary = vocabulary_of(less.warm, case.least)
        row(f"without features of {side}", trained("MAML", less, 0, steps, vocabulary=vocabulary)[2])
    row("ids never hidden", trained("MAML", case, 0, steps, id_dropout=0.0)[2])
    row("always 20 shown in training", trained("MAML", case, 0, steps, support=20)[2])
    row("supports from any time", trained("MAML", case, 0, steps, early=1.0)[2])
    row("supports from a little earlier than any time", trained("MAML", case, 0, steps, early=4.0)[2])
    row("twice as wide", trained("MAML", case, 0, steps, embedding_dim=64)[2])
    for name in ("fine-tuning", "Ridge"):
        if name in chosen.values:
            row(f"{name} in place of MAML", chosen.values[name])
    held, train = case.split.validation, case.split.train
    for name in (*FLOORS, EARLY):
        row(name, *judge([(chosen.rehearsal[name], held)]))
    changes = {"without its prior": {"prior": 0.0}, "all places alike": {"early": None}}
    for name, changed in changes.items():
        row(f"{EARLY}, {name}", *judge([(early_ease(train, case.vocabulary, **changed), held)]))
    users = held.table["user_id"].unique().sort()
    halves = [held.filter(pl.col("user_id").is_in(users[half::2].implode())) for half in (0, 1)]
    variants = {
        "the mixture": MEMBERS,
        **{f"the mixture without {name}": tuple(other for other in MEMBERS if other != name) for name in MEMBERS},
        f"the mixture of {', '.join((*LEARNERS, *FLOORS))}": (*LEARNERS, *FLOORS),
        "the mixture of everything": (*LEARNERS, *FLOORS, EARLY),
    }
    equal = mixed(chosen.rehearsal, case.vocabulary)
    row("the mixture, equal weights", *judge([(equal, held)]))
    for variant, names in variants.items():
        parts = []
        for fit_on, judge_on in (halves, halves[::-1]):
            support, taken = asked(fit_on, case)
            mixture = mixed(chosen.rehearsal, case.vocabulary, names).fit(support, {"item_id": taken})
            parts.append((mixture, judge_on))
        row(variant, *judge(parts))
    return rows


def _column(table: ColdStartTable, metric: str) -> str:
    return next(name for name in table.per_user.columns if name.startswith(metric))


def summary(users: pl.DataFrame) -> dict[str, report.Rows]:
    """A table a metric: learners down, K across, and the mean over the K from 1 on."""
    tables = {}
    for metric in METRICS:
        column = next((name for name in users.columns if name.split("@")[0] == metric.split("@")[0]), metric)
        means = users.group_by("learner", "K", maintain_order=True).agg(pl.col(column).mean())
        rows = []
        for (learner,), group in means.group_by("learner", maintain_order=True):
            by_k = dict(zip(group["K"].to_list(), group[column].to_list(), strict=True))
            average = float(np.mean([value for k, value in by_k.items() if k > 0] or [np.nan]))
            rows.append({"learner": learner, **{f"K={k}": value for k, value in by_k.items()}, "mean": average})
        tables[f"{metric}, means over users and seeds"] = rows
    return tables


def verdicts(users: pl.DataFrame, names: Any) -> report.Rows:
    """Each learner against the best floor at each K, over users (the mean of a user's seeds)."""
    rows = []
    for metric in METRICS:
        column = next((name for name in users.columns if name.split("@")[0] == metric.split("@")[0]), metric)
        per_user = users.group_by("learner", "K", "user_id", maintain_order=True).agg(pl.col(column).mean())
        for (k,), group in per_user.group_by("K", maintain_order=True):
            values = {
                str(name): own.sort("user_id")[column].to_numpy()
                for (name,), own in group.group_by("learner", maintain_order=True)
            }
            best = max(FLOORS, key=lambda name: values[name].mean())
            for name in names:
                found = paired_bootstrap(values[name], values[best])
                rows.append({"metric": metric, "K": k, "learner": name, "floor": best, "difference": found.mean})
                rows[-1] |= {"low": found.low, "high": found.high, "verdict": found.verdict(name, best)}
    return rows


def targets(tables: dict[str, report.Rows], judged: report.Rows, learner: str) -> list[report.Target]:
    """The protocol's, held against the learner that validation users like best."""
    made = []
    for metric, goal in GOAL.items():
        rows = tables[f"{metric}, means over users and seeds"]
        own = next(row for row in rows if row["learner"] == learner)
        popular = next(row for row in rows if row["learner"] == "popularity")
        made.append(report.Target(f"{learner} {metric}, mean over K", own["mean"], "at least", goal))
        made.append(report.Target(f"{learner} {metric}, K=0", own["K=0"], "at least", popular["K=0"]))
        rising = [own[f"K={k}"] for k in AVERAGED]
        made.append(report.Target(f"{learner} {metric}, least step up with K", min(np.diff(rising)), "at least", 0.0))
    below = sum(row["learner"] == learner and row["high"] < 0 for row in judged)
    made.append(report.Target(f"{learner}, cases significantly below the best floor", below, "at most", 0))
    return [target._replace(value=float(target.value)) for target in made]


def settings() -> dict[str, Any]:
    """What the figures were made with."""
    return {
        "tower": TOWER,
        "gradient_learners": GRADIENT,
        "episodes": EPISODES,
        "optimizer": OPTIMIZER,
        "epochs": f"at most {EPOCHS}, chosen on validation users with patience {PATIENCE}",
        "early_ease": EARLY_EASE,
        "members": MEMBERS,
        "min_category_users": MIN_CATEGORY_USERS,
    }


def told_apart(train: Interactions, test: Interactions, seed: int, steps: int | None, held: Split) -> report.Rows:
    """Films that somebody rated against as many drawn from those not rated: accuracy and the rest, users new.

    Of each user the last ten of a random order are positive, the others the support. A film is judged by the share of
    the catalogue that stands below it for the user; the threshold on that is chosen on users held out of `train`.
    """
    rows = []

    def rated(learn: Interactions, ask: Interactions) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        vocabulary = vocabulary_of(learn, 2)
        learner = learner_of("MAML", vocabulary, seed)
        options = {"support": (0, 80), "early": 1.0, "order": "random"}
        epochs = TOLD_EPOCHS if steps is None else 1
        learner.fit(episodes_of(learn, vocabulary, seed, steps, **options), epochs=epochs, verbose=0)
        ease = EASE(TOLD_REGULARIZATION).fit(ratings_of(learn, vocabulary))
        found = {**fitted_floors(learn, vocabulary, seed=seed), TOLD_EASE: ease, "MAML": learner}
        found[MIXTURE] = Mixture({name: found[name] for name in ("MAML", TOLD_EASE)}, vocabulary)  # Equal weights.
        return {name: _positives_and_negatives(one, ask, vocabulary, seed) for name, one in found.items()}

    chosen, final = rated(held.train, held["user_cold"]), rated(train, test)
    for name, (labels, scores) in final.items():
        for metric in ("accuracy", "f1"):
            threshold = metrics.best_threshold(*chosen[name], metric)
            figures = metrics.classification(labels, scores, threshold)
            rows.append({"seed": seed, "classifier": f"{name}, best {metric} on validation", **figures})
    return rows


def _positives_and_negatives(
    recommender: Any, part: Interactions, vocabulary: Vocabulary, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    counts = part.table.group_by("user_id").len().filter(pl.col("len").is_between(13, 100))
    kept = part.filter(pl.col("user_id").is_in(counts["user_id"].implode()))
    table = TaskTable.build(kept, vocabulary, min_interactions=13)
    rng = np.random.default_rng(seed)
    labels, scores = [], []
    order = np.lexsort((rng.random(len(table.item)), np.repeat(np.arange(len(table)), table.sizes)))
    for first in range(0, len(table), 128):
        tasks = np.arange(first, min(first + 128, len(table)))
        length = table.sizes[tasks] - 10
        place = np.minimum(np.arange(max(length)), length[:, None] - 1)
        shown = order[table.start[tasks][:, None] + 10 + place]
        query = order[table.start[tasks][:, None] + np.arange(10)]
        met = np.zeros((len(tasks), vocabulary.n_items), bool)
        rows_of = slice(table.start[tasks[0]], table.start[tasks[-1] + 1])
        met[np.repeat(np.arange(len(tasks)), table.sizes[tasks]), table.item[rows_of]] = True
        keys = np.where(met, 2.0, rng.random(met.shape))
        keys[:, 0] = 2.0
        drawn = np.argpartition(keys, 10, axis=1)[:, :10]
        rows = np.concatenate([table.item[query], drawn], 1)
        users = table.users.take(table.user[shown[:, 0]])
        support = Support(users, table.items.take(table.item[shown]), table.label[shown], length.astype(np.int32))
        said = np.asarray(recommender.score(recommender.adapt(support), vocabulary.catalogue))
        # Scores grow with the support, so one threshold for all users needs the place in a user's own catalogue.
        said = scipy.stats.rankdata(said, axis=1) / said.shape[1]
        scores.append(np.take_along_axis(said, rows, axis=1).ravel())
        labels.append(np.tile(np.repeat([1, 0], 10), len(tasks)))
    return np.concatenate(labels), np.concatenate(scores)
