"""Users, items or both unknown, and ratings to predict: the part of `cold_start` for explicit feedback."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
import polars as pl

import tfmetarec as tmr
from benchmarks import report, zero_shot
from benchmarks.zero_shot import LISTED, MOST, SHORT, Tasks, predictions, tasks
from tfmetarec.data import Interactions, Split, Vocabulary
from tfmetarec.evaluation import metrics, paired_bootstrap, ratings_of
from tfmetarec.models.baselines import BayesianMF, BiasedMF, GlobalMean, ItemUserBias
from tfmetarec.tasks import Support
from tfmetarec.transfer.median import MedianRatings
from tfmetarec.transfer.mixture import Mixture
from tfmetarec.transfer.zero_shot import two_tower_from_vectors

STATES = ("warm", "user_cold", "item_cold", "both_cold")
KINDS = {"warm": ("warm",), "user_cold": ("user_cold",), "new items": ("item_cold", "both_cold")}
WARM_SHARE = 0.1  # Of the ratings that are left for training, as in the published states.
SUPPORTS = {"all": MOST, "5": SHORT}
FACTORIZATIONS = {"MF fold-in": 32, "MF fold-in, 64 factors": 64, "MF fold-in, 128 factors": 128}
BAYESIAN = "Bayesian MF"
FLOORS = ("global mean", "item+user bias", *FACTORIZATIONS, BAYESIAN)
FOLDED, READ = "MF fold-in, 128 factors", "MF fold-in, 64 factors"  # What `Ridge` and the set encoder start from.
LEARNERS = ("fine-tuning", "MAML", "Ridge", "Ridge on factors", "set encoder on factors")
MEMBERS = (BAYESIAN, "Ridge on factors", "set encoder on factors", "Ridge")
MIXTURE, MEDIANS = "mixture", " as medians"
# One configuration for all ratings, chosen on validation users of MovieLens-1M.
MIN_CATEGORY_USERS = 20
FOLD_IN = {"regularization": 1.5, "level_regularization": 5.0}
TOWER = {"embedding_dim": 32, "item_hidden": (64,), "dropout": 0.3, "id_dropout": 0.3}
GRADIENT = {"inner_steps": 3, "inner_learning_rate": 0.05, "shrinkage": 5.0}
SET_ENCODER = {"representation": 128, "hidden": (128,), "dropout": 0.3}
EPISODES = {"support": (0, MOST - 10), "query": 20, "tasks_per_batch": 64, "order": "random"}
TOWER_OPTIMIZER = {"learning_rate": 2e-3, "weight_decay": 0.05}
ENCODER_OPTIMIZER = {"learning_rate": 2e-3, "weight_decay": 0.01}
EPOCH, TOWER_EPOCHS, ENCODER_EPOCHS = 100, 6, 5
METRICS = ("mae", "rmse", "ndcg_at_5")
# State, support, metric, rule, bound, and whether it is the mixture of means or of medians that is held to it.
BOUNDS = (
    ("user_cold", "all", "mae", "at most", 0.690),
    ("user_cold", "all", "rmse", "at most", 0.850),
    ("user_cold", "all", "ndcg_at_5", "at least", 0.820),
    ("user_cold", "5", "mae", "at most", 0.735),
    ("item_cold", "all", "ndcg_at_5", "at least", 0.70),
    ("item_cold", "all", "mae", "at most", 0.85),
    ("both_cold", "all", "ndcg_at_5", "at least", 0.70),
    ("both_cold", "all", "mae", "at most", 0.85),
    ("warm", "all", "mae", "at most", 0.700),
    ("warm", "all", "rmse", "at most", 0.850),
)

Say = Callable[[str], None]


class Problem(NamedTuple):
    """Ratings in their states, what choices are made on, and what gradient learners read of items: `None` for all."""

    name: str
    split: Split
    held: Split
    content: tuple[str, ...] | None = None


class Budget(NamedTuple):
    """How long learners train, of an epoch's steps."""

    steps: int
    quick: bool


def problem(
    interactions: Interactions, published: Split | None = None, content: tuple[str, ...] | None = None
) -> Problem:
    """The published states, or four drawn ones; within the training part the same again, to choose on."""
    split = published or tmr.data.every_state(interactions, item_share=0.25, warm_rows=20, validation_share=0.0)
    if published is None:
        parts = {"user_cold" if name == "test" else name: part for name, part in split.parts.items()}
        split = Split(parts, split.seed, split.notes)
    dated = split.train.items is not None and "year" in split.train.items.columns
    if dated:
        held = zero_shot.validation(split.train, latest=published is not None)
    else:
        held = tmr.data.four_states(split.train, item_share=0.25)
    is_warm = np.random.default_rng(0).random(len(held.train)) < WARM_SHARE
    known = {"train": held.train.filter(pl.Series(~is_warm)), "warm": held.train.filter(pl.Series(is_warm))}
    return Problem(interactions.name, split, Split({**held.parts, **known}, held.seed, held.notes), content)


def vocabulary_of(train: Interactions) -> Vocabulary:
    return Vocabulary.fit(train, max_list_length=LISTED, min_category_users=MIN_CATEGORY_USERS)


class Floors(NamedTuple):
    """What is learned once for all seeds, since a seed decides only where a factorisation starts and what is drawn."""

    vocabulary: Vocabulary
    found: dict[str, Any]

    @classmethod
    def of(cls, train: Interactions, say: Say, quick: bool = False) -> "Floors":
        start = time.perf_counter()
        vocabulary = vocabulary_of(train)
        ratings = ratings_of(train, vocabulary)
        turns = {"iterations": 2} if quick else {}
        factorizations = (BiasedMF(factors, **turns) for factors in FACTORIZATIONS.values())
        bayesian = BayesianMF(draws=3, burn_in=2) if quick else BayesianMF()
        made: list[Any] = [GlobalMean(), ItemUserBias(), *factorizations, bayesian]
        found = {name: floor.fit(ratings) for name, floor in zip(FLOORS, made, strict=True)}
        say(f"  floors: {time.perf_counter() - start:.0f} s")
        return cls(vocabulary, found)

    def on_factors(self, name: str) -> keras.Model:
        """A `TwoTower` that begins with the item vectors of a factorisation, and reads of items the id alone."""
        factors = self.found[name]
        return two_tower_from_vectors(only_ids(self.vocabulary), factors.items, level=factors.mean)


def fitted(
    train: Interactions,
    floors: Floors,
    names: Any,
    budget: Budget,
    seed: int,
    say: Say,
    content: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Floors and the learners that are named, learned on `train`."""
    vocabulary, found = floors.vocabulary, dict(floors.found)
    episodes = tmr.tasks.user_episodes(train, vocabulary, **EPISODES, min_interactions=13, seed=seed)
    classes = zero_shot.item_features(vocabulary)
    completion = {"item_features": classes, **zero_shot.PROTOTYPES, "sample": 200 if budget.quick else 1000}

    def trained(learner: Any, optimizer: dict[str, float], epochs: int) -> Any:
        return fit(learner, episodes, optimizer, epochs * budget.steps)

    def tower(features: tuple[str, ...] | None) -> Any:
        return tmr.models.TwoTower(towers_specs(vocabulary, features), **TOWER, seed=seed)

    def completed(learner: Any) -> Any:
        return tmr.transfer.zero_shot(learner, train, seed=seed, **completion) if classes else learner

    def on_tower(kind: Any, features: tuple[str, ...] | None = content, **options: Any) -> Any:
        learner = kind(tower(features), vocabulary=vocabulary, **options, seed=seed)
        return trained(learner, TOWER_OPTIMIZER, TOWER_EPOCHS)

    def set_encoder() -> Any:
        learner = tmr.meta.SetEncoder(floors.on_factors(READ), vocabulary=vocabulary, **SET_ENCODER, seed=seed)
        return completed(trained(learner, ENCODER_OPTIMIZER, ENCODER_EPOCHS))

    makers: dict[str, Callable[[], Any]] = {
        "fine-tuning": lambda: on_tower(tmr.meta.FineTuning, **GRADIENT),
        "MAML": lambda: on_tower(tmr.meta.MAML, **GRADIENT),
        "Ridge": lambda: on_tower(tmr.meta.Ridge, None, **FOLD_IN),
        "Ridge on factors": lambda: completed(
            tmr.meta.Ridge(floors.on_factors(FOLDED), vocabulary=vocabulary, **FOLD_IN, seed=seed)
        ),
        "set encoder on factors": set_encoder,
    }
    for name in names:
        start = time.perf_counter()
        found[name] = makers[name]()
        say(f"  {name}: {time.perf_counter() - start:.0f} s")
    return found


def fit(learner: Any, episodes: Any, optimizer: dict[str, Any], steps: int) -> Any:
    """Trains with a rate that falls like a cosine."""
    options = dict(optimizer)
    rate = keras.optimizers.schedules.CosineDecay(options.pop("learning_rate"), steps, alpha=0.05)
    learner.compile(optimizer=keras.optimizers.AdamW(rate, **options))
    learner.fit(episodes, steps_per_epoch=steps, epochs=1, verbose=0)
    return learner


def towers_specs(vocabulary: Vocabulary, content: tuple[str, ...] | None) -> Any:
    """What a tower reads: everything, or of the items only some features (classes made for prototypes say it twice)."""
    if content is None:
        return vocabulary.specs
    kept = {*content, "item_level"}
    return replace(vocabulary.specs, item=tuple(spec for spec in vocabulary.specs.item if spec.name in kept))


def only_ids(vocabulary: Vocabulary) -> Any:
    return towers_specs(vocabulary, ("item_id",))


def levers(case: Problem, budget: Budget, say: Say) -> report.Rows:
    """What each choice in the set encoder is worth to validation users: alone, and in equal parts with a floor."""
    floors = Floors.of(case.held.train, say, budget.quick)
    vocabulary = floors.vocabulary
    less = Interactions.from_frames(
        case.held.train.table, items=case.held.train.items, feedback="explicit", name=case.name
    )
    plain = vocabulary_of(less)
    parts = [tasks(case.held["user_cold"], vocabulary, 0, support) for support in SUPPORTS.values()]
    beside = [predictions(floors.found[BAYESIAN], part) for part in parts]

    def made(own: Vocabulary, **changed: Any) -> Any:
        factors = floors.found[READ]
        if changed.pop("from_nothing", False):
            model = tmr.models.TwoTower(only_ids(own), FACTORIZATIONS[READ], item_hidden=(), id_dropout=0.0)
        else:
            model = two_tower_from_vectors(only_ids(own), factors.items, level=factors.mean)
        optimizer = {**ENCODER_OPTIMIZER, **changed.pop("optimizer", {})}
        epochs = changed.pop("epochs", ENCODER_EPOCHS)
        train = less if own is plain else case.held.train
        episodes = tmr.tasks.user_episodes(train, own, **EPISODES, min_interactions=13, seed=0)
        learner = tmr.meta.SetEncoder(model, vocabulary=own, **{**SET_ENCODER, **changed}, seed=0)
        return fit(learner, episodes, optimizer, epochs * budget.steps)

    variants: dict[str, tuple[Vocabulary, dict[str, Any]]] = {
        "set encoder, as configured": (vocabulary, {}),
        "without users' features": (plain, {}),
        "item vectors from nothing": (vocabulary, {"from_nothing": True}),
        "dropout .1": (vocabulary, {"dropout": 0.1}),
        "attention over the support, 8 heads": (vocabulary, {"heads": 8}),
        "running mean of the weights": (vocabulary, {"optimizer": {"use_ema": True, "ema_momentum": 0.99}}),
        "three times the steps": (vocabulary, {"epochs": 3 * ENCODER_EPOCHS}),
    }
    rows: report.Rows = [{"variant": f"{BAYESIAN} alone", **_both(parts, beside, 0)}]
    for variant, (own, changed) in list(variants.items())[: 2 if budget.quick else None]:
        learner = made(own, **changed)
        if "optimizer" in changed:
            learner.optimizer.finalize_variable_values(learner.trainable_variables)
        asked = parts
        if own is not vocabulary:
            asked = [tasks(case.held["user_cold"], own, 0, support) for support in SUPPORTS.values()]
        said = [predictions(learner, part) for part in asked]
        mixed = [(a + b) / 2 for a, b in zip(said, beside, strict=True)]
        rows.append({"variant": variant, **_both(parts, said, 0)})
        rows[-1] |= {f"{name}, with {BAYESIAN}": value for name, value in _both(parts, mixed, 0).items()}
        say(f"  {variant}: {rows[-1]}")
    return rows


def askable(split: Split, states: Any) -> list[str]:
    """Those states in which somebody has as many ratings as the protocol asks for."""
    fits = pl.col("len").is_between(zero_shot.FEWEST, MOST)
    return [
        state
        for state in states
        if state in split.parts and split[state].table.group_by("user_id").len().filter(fits).height
    ]


class Chosen(NamedTuple):
    """What was chosen on held-out ratings: the mixtures' gates and the medians' thresholds, for each of `KINDS`."""

    gates: Mapping[str, np.ndarray]
    thresholds: Mapping[tuple[str, str], np.ndarray]
    cut: Mapping[str, float]
    ablation: report.Rows


def choose(case: Problem, names: Any, budget: Budget, say: Say) -> Chosen:
    """Learns on a part of `train` and chooses on users, and items, that were held out of it."""
    held, seed = case.held, 0
    floors = Floors.of(held.train, say, budget.quick)
    vocabulary = floors.vocabulary
    found = fitted(held.train, floors, names, budget, seed, say, case.content)
    members = {name: found[name] for name in MEMBERS if name in found}
    gates, thresholds, cut, ablation = {}, {}, {}, []
    scale = tuple(np.unique(held.train.table["label"].to_numpy()).tolist())
    for kind, states in KINDS.items():
        parts = [
            tasks(held[state], vocabulary, seed, support)
            for state in askable(held, states)
            for support in (*SUPPORTS.values(), 20)
        ]
        if not parts:
            continue
        said = {name: [predictions(one, part) for part in parts] for name, one in found.items()}
        if len(members) > 1:
            everything = Gathered.of(parts)
            mixture = Mixture(members, vocabulary).fit(everything.support, everything.item, everything.labels)
            gates[kind] = mixture.gate
            said[MIXTURE] = [predictions(mixture, part) for part in parts]
            if kind == "user_cold":
                ablation = ablated(parts[:2], said, members, vocabulary, seed)
        labels = np.concatenate([part.table.label[part.query].ravel() for part in parts])
        for name in (*FLOORS[1:], MIXTURE):
            if name in said:
                scores = np.concatenate([scores.ravel() for scores in said[name]])
                if len(scale) <= 12:
                    thresholds[name, kind] = MedianRatings(None, scale).fit_scores(scores, labels).thresholds
        if kind == "user_cold":
            full = said[MIXTURE if MIXTURE in said else FLOORS[-1]][0].ravel()
            good = liked(parts[0], scale)
            cut = {metric: metrics.best_threshold(good, full, metric) for metric in ("accuracy", "f1")}
    return Chosen(gates, thresholds, cut, ablation)


def liked(asked: Tasks, scale: Any) -> np.ndarray:
    """1 where what is asked about was liked, 0 where not."""
    return (asked.table.label[asked.query].ravel() >= metrics.positive_from(min(scale), max(scale))).astype(int)


class Gathered(NamedTuple):
    """Tasks of several lengths as one support."""

    support: Support
    item: dict[str, np.ndarray]
    labels: np.ndarray

    @classmethod
    def of(cls, parts: list[Tasks]) -> "Gathered":
        width = max(part.support.shape[1] for part in parts)
        supports, items, labels = [], [], []
        for part in parts:
            table = part.table
            shown = np.pad(part.support, ((0, 0), (0, width - part.support.shape[1])), mode="edge")
            users = table.users.take(table.user[shown[:, 0]])
            supports.append(Support(users, table.items.take(table.item[shown]), table.label[shown], part.length))
            items.append(table.items.take(table.item[part.query]))
            labels.append(table.label[part.query])
        support = Support(*(joined([support[place] for support in supports]) for place in range(4)))
        return cls(support, joined(items), joined(labels))


def joined(values: list[Any]) -> Any:
    """Arrays, or dicts of arrays, end to end."""
    if isinstance(values[0], dict):
        return {name: np.concatenate([value[name] for value in values]) for name in values[0]}
    return np.concatenate(values)


def ablated(parts: list[Tasks], said: dict, members: dict, vocabulary: Vocabulary, seed: int) -> report.Rows:
    """What each member and the gate are good for: fitted on one half of the validation users, judged on the other."""
    cases: dict[str, tuple[dict, bool]] = {"the mixture": (members, True), "equal weights": (members, False)}
    for name in members:
        if len(members) > 2:
            cases[f"without {name}"] = ({other: one for other, one in members.items() if other != name}, True)
    rows = [
        {"variant": f"{name} alone", **_both(parts, [said[name][place] for place in range(2)], seed)}
        for name in (*FLOORS[1:], *said)
        if name not in (MIXTURE, "global mean") and name in said
    ]
    rows = list({row["variant"]: row for row in rows}.values())
    for variant, (chosen, gated) in cases.items():
        mixed = [np.empty_like(said[next(iter(members))][place]) for place in range(2)]
        for half in (0, 1):
            fit = Gathered.of([_subset(part, half, inside=True) for part in parts])
            mixture = Mixture(chosen, vocabulary)
            if gated:
                mixture.fit(fit.support, fit.item, fit.labels)
            for place, part in enumerate(parts):
                mixed[place][np.arange(part.users) % 2 != half] = predictions(
                    mixture, _subset(part, half, inside=False)
                )
        rows.append({"variant": variant, **_both(parts, mixed, seed)})
    return rows


def _subset(part: Tasks, half: int, *, inside: bool) -> Tasks:
    keep = (np.arange(part.users) % 2 == half) == inside
    return Tasks(int(keep.sum()), part.table, part.support[keep], part.length[keep], part.query[keep])


def _both(parts: list[Tasks], scores: list[np.ndarray], seed: int) -> dict[str, float]:
    found = {}
    for name, part, own in zip(("all", "5"), parts, scores, strict=True):
        figures = by_user(own, part, seed)
        found |= {f"rmse, support {name}": float(figures["rmse"].mean())}
        found |= {f"ndcg, support {name}": float(figures["ndcg_at_5"].mean())}
    return found


def by_user(scores: np.ndarray, asked: Tasks, seed: int) -> dict[str, np.ndarray]:
    """The metrics of each user, predictions clipped to the range of ratings."""
    labels = asked.table.label[asked.query].astype(np.float64)
    clipped = np.clip(scores, labels.min(), labels.max())
    return {
        "mae": metrics.mae(labels, clipped),
        "rmse": metrics.rmse(labels, clipped),
        "ndcg_at_5": metrics.rating_ndcg_at_k(labels, scores, k=5, seed=seed),
    }


def measured(
    case: Problem, floors: Floors, names: Any, chosen: Chosen, budget: Budget, seed: int, say: Say, keep: bool
) -> dict[str, pl.DataFrame]:
    """One seed: everything is learned, then the test users are asked once."""
    vocabulary = floors.vocabulary
    found = fitted(case.split.train, floors, names, budget, seed, say, case.content)
    members = {name: found[name] for name in MEMBERS if name in found}
    scale = tuple(np.unique(case.split.train.table["label"].to_numpy()).tolist())
    frames, single, binary = [], [], []
    for state in askable(case.split, STATES):
        kind = next(kind for kind, states in KINDS.items() if state in states)
        if chosen.gates:  # Where there was nothing to choose on, the gate of another kind.
            found[MIXTURE] = Mixture(members, vocabulary)
            found[MIXTURE].gate = chosen.gates.get(kind, next(iter(chosen.gates.values())))
        for shown, support in SUPPORTS.items():
            asked = tasks(case.split[state], vocabulary, seed, support)
            said = {name: predictions(one, asked) for name, one in found.items()}
            for name in list(said):
                if (name, kind) in chosen.thresholds:
                    medians = MedianRatings(None, scale)
                    medians.thresholds = chosen.thresholds[name, kind]
                    said[name + MEDIANS] = medians.of(said[name])
            for name, scores in said.items():
                case_ = {"seed": seed, "state": state, "support": shown, "learner": name}
                frames.append(pl.DataFrame({**case_, "user_id": asked.table.keys, **by_user(scores, asked, seed)}))
                if keep:
                    ids = asked.table.items.ids
                    rows = {"item_id": [ids[row].to_list() for row in asked.table.item[asked.query]]}
                    rows |= {"score": scores.tolist(), "label": asked.table.label[asked.query].tolist()}
                    single.append(pl.DataFrame({**case_, "user_id": asked.table.keys, **rows}))
            if state == "user_cold" and shown == "all":
                best = MIXTURE if MIXTURE in said else FLOORS[-1]
                good = liked(asked, scale)
                binary += [
                    {"seed": seed, "classifier": f"{best}, best {metric} on validation"}
                    | metrics.classification(good, said[best].ravel(), threshold)
                    for metric, threshold in chosen.cut.items()
                ]
                positive = metrics.positive_from(min(scale), max(scale))
                often = float((case.split.train.table["label"] >= positive).mean() > 0.5)
                majority = np.full(len(good), often)
                binary.append(
                    {"seed": seed, "classifier": "majority class"} | metrics.classification(good, majority, 0.5)
                )
        say(f"  {state}: asked")
    made = {"users": pl.concat(frames), "binary": pl.DataFrame(binary)}
    return made | ({"predictions": pl.concat(single)} if keep else {})


def summary(users: pl.DataFrame) -> report.Rows:
    """Means over users, then over seeds."""
    case = ["state", "support", "learner"]
    by_seed = users.group_by([*case, "seed"], maintain_order=True).agg(pl.len().alias("users"), pl.col(*METRICS).mean())
    spread = [pl.col("mae").std(ddof=0).alias("mae_over_seeds")]
    return (
        by_seed.group_by(case, maintain_order=True).agg(pl.col("users").max(), pl.col(*METRICS).mean(), *spread)
    ).to_dicts()


def verdicts(users: pl.DataFrame) -> report.Rows:
    """Each learner against the best floor of its state, over users (the mean of a user's seeds); medians apart."""
    per_user = users.group_by("state", "support", "learner", "user_id", maintain_order=True).agg(
        pl.col(*METRICS).mean()
    )
    rows = []
    for (state, support), group in per_user.group_by("state", "support", maintain_order=True):
        for metric in METRICS:
            values = {
                str(name): own.sort("user_id")[metric].to_numpy()
                for (name,), own in group.group_by("learner", maintain_order=True)
            }
            medians = [name for name in values if name.endswith(MEDIANS)]
            for kind in ([n for n in values if n not in medians], medians):
                floors = [name for name in kind if name.removesuffix(MEDIANS) in FLOORS]
                sign = -1 if metric == "ndcg_at_5" else 1
                if not floors or (medians is kind and metric == "ndcg_at_5"):
                    continue
                best = min(floors, key=lambda name: sign * values[name].mean())
                for name in kind:
                    if name.removesuffix(MEDIANS) in (MIXTURE, "MAML"):
                        found = paired_bootstrap(values[name], values[best])
                        said = found.verdict(name, best, higher_is_better=sign < 0)
                        rows.append({"state": state, "support": support, "metric": metric, "verdict": said})
    return rows


def targets(rows: report.Rows, published: bool) -> list[report.Target]:
    """Squared error and order are held against means, absolute error against medians."""
    if not published:
        return []
    found = {(row["state"], row["support"], row["learner"]): row for row in rows}
    made = []
    for state, support, metric, rule, bound in BOUNDS:
        learner = MIXTURE + MEDIANS if metric == "mae" else MIXTURE
        if (state, support, learner) in found:
            name = f"{state} {metric}, support {support}, {learner}"
            made.append(report.Target(name, found[state, support, learner][metric], rule, bound))
    return made


def settings() -> dict[str, Any]:
    """What the figures were made with."""
    return {
        "factorizations": FACTORIZATIONS,
        "bayesian_factorization": {
            name: getattr(BayesianMF(), name) for name in ("factors", "draws", "burn_in", "thinning")
        },
        "min_category_users": MIN_CATEGORY_USERS,
        "fold_in": FOLD_IN,
        "tower": TOWER,
        "gradient_learners": GRADIENT,
        "set_encoder": SET_ENCODER,
        "episodes": EPISODES,
        "tower_optimizer": {**TOWER_OPTIMIZER, "steps": EPOCH * TOWER_EPOCHS},
        "encoder_optimizer": {**ENCODER_OPTIMIZER, "steps": EPOCH * ENCODER_EPOCHS},
        "prototypes": zero_shot.PROTOTYPES,
        "members": MEMBERS,
    }
