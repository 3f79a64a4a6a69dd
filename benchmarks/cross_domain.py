"""Users who are cold in one domain and known in another: every way to cross, beside every floor.

**Ratings**, `--data` a folder with Douban's `book.parquet` and `music.parquet`: a share beta of the people who rated
both loses all ratings of the target, which are then predicted from those of the source. MAE and RMSE over all hidden
ratings, means over seeds, clipped to 1 to 5. Floors: the mean; the item's bias; with it the user's bias in the source;
the same with shrinkages tuned on validation users; and a biased factorisation of both domains together (CMF-style).
Everything that has settings chooses them on validation users, a fifth of the people left with both domains, and is
then fitted on all of them; test users are predicted once.

`hierarchical transfer` predicts a distribution over the five steps. Its mean is judged by RMSE and its median by MAE,
since each is best at that; `mae_of_mean` shows what the mean alone gets. What of its lead the median makes is seen in
the row of the tuned biases whose predictions are given a median in the same way, which is no floor but a control.
The row of known users says how low an error can get: the same people and the same model, after nine tenths of their
target ratings, judged on the last tenth. Learners that train by gradient are run for the first seed alone.

A run that was interrupted goes on where it stopped: what is done lies in a folder beside the JSON file, which is
removed at the end.

**Purchases**, Complete Journey (from its package): households whose DRUG GM purchases are all hidden are known by their
groceries; all DRUG GM products that enough households bought are ranked. Recall and nDCG of 20, means over
households, one draw of households, with a paired bootstrap against the best floor. Floors: popularity, and ALS,
item-KNN and EASE fitted on both departments together.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import polars as pl
from rich.console import Console

import tfmetarec as tmr
from benchmarks import report
from tfmetarec.data import DataError, Interactions
from tfmetarec.data.whole_file import write_whole
from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.bootstrap import paired_bootstrap
from tfmetarec.models.baselines import EASE, ImplicitALS, ItemKNN
from tfmetarec.models.baselines.linear_algebra import shrunk_means
from tfmetarec.transfer import ordinal
from tfmetarec.transfer.adaptive import AdaptiveTransfer
from tfmetarec.transfer.cross_domain import CrossDomainMethod, Domains, Judged, cross_domain, judged
from tfmetarec.transfer.distilled import DistilledTransfer
from tfmetarec.transfer.emcdr import EMCDR
from tfmetarec.transfer.fine_tuning import FineTuning
from tfmetarec.transfer.hierarchical import HierarchicalTransfer
from tfmetarec.transfer.joint_training import JointTraining
from tfmetarec.transfer.kernel import KernelTransfer
from tfmetarec.transfer.meta_transfer import MetaTransfer
from tfmetarec.transfer.ptupcdr import PTUPCDR

NAME = "cross_domain"
DIRECTIONS = (("book", "music"), ("music", "book"))
BETAS = (0.2, 0.5, 0.8)
VALIDATION_SHARE = 0.2
ITEM_SHRINKAGE, USER_SHRINKAGE = 5.0, 10.0
TUNED = [(item, user) for item in (1.0, 2.0, 3.0, 5.0) for user in (5.0, 10.0, 20.0)]
# Of ratings, best of .1, .3, 1, 3 and 10 on validation users; from 1 on, little but biases is carried across.
BRIDGED = 1.0
FLOORS = ("mean", "item bias", "item bias, user's of the source", "the same, tuned", "joint biased MF")
CONTROL = "the same, tuned, with a median"
KNOWN = "hierarchical, users known in the target"
OURS = HierarchicalTransfer.name
WANTED = 0.97  # Of the best floor's error.

PURCHASES = {"source": "GROCERY", "target": "DRUG GM", "test_share": 0.2}
MIN_ITEM_USERS = 10
TOP_K = 20
PURCHASE_FLOORS = ("popularity", "iALS, both departments", "item-KNN, both departments", "EASE, both departments")


class Predicted(NamedTuple):
    """What one method says of the hidden ratings of one cell.

    Attributes:
        mean: `(n,)` judged by the squared error.
        median: `(n,)` judged by the absolute error.
    """

    mean: np.ndarray
    median: np.ndarray


class Asked(NamedTuple):
    """The hidden ratings of one cell: `(n,)` rows of users and items, and the ratings."""

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray


def kept(file: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of an earlier run that was interrupted, or computed and written now."""
    if not file.exists():
        with write_whole(file) as writing, writing.open("wb") as stream:
            np.savez(stream, **compute())  # type: ignore[arg-type]
    with np.load(file) as arrays:
        return dict(arrays)


# -- ratings -------------------------------------------------------------------------------------------------


def learner(units: int, seed: int) -> Callable[[tmr.data.Vocabulary], keras.Model]:
    """Ridge on a two-tower model: an exact fold-in whose item vectors are learned."""

    def make(vocabulary: tmr.data.Vocabulary) -> keras.Model:
        return tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, units, seed=seed), seed=seed)

    return make


def rating_methods(seed: int, quick: bool) -> dict[str, CrossDomainMethod]:
    """The ways to cross by name; those that train a learner for the first seed alone."""
    few = 1 if quick else None
    made: list[CrossDomainMethod] = [
        EMCDR(regularization=BRIDGED, epochs=few or 40, seed=seed),
        PTUPCDR(regularization=BRIDGED, epochs=few or 10, seed=seed),
        HierarchicalTransfer(),
        AdaptiveTransfer(HierarchicalTransfer()),
    ]
    if seed == 0:
        options: dict[str, Any] = {"support": (0, 50), "query": 20, "epochs": few or 4, "seed": seed}
        made += [
            MetaTransfer(learner(16, seed), **options),
            FineTuning(learner(16, seed), frozen="item_encoder", source_epochs=few or 3, **options),
            DistilledTransfer(learner(16, seed), HierarchicalTransfer(), **options),
        ]
    return {method.name: method for method in made}


def bias_prediction(domains: Domains, source_labels: np.ndarray, asked: Asked, item: float, user: float) -> np.ndarray:
    """Mean + the item's shrunk bias + the user's shrunk bias in the source."""
    source, target = domains.source_ratings, domains.target_ratings
    mean, item_bias = item_biases(target, item)
    source_mean, source_bias = item_biases(source, item)
    of_user = shrunk_means(source.user, source_labels - source_mean - source_bias[source.item], source.n_users, user)
    return mean + item_bias[asked.item] + of_user[asked.user]


def item_biases(ratings: Any, shrinkage: float) -> tuple[float, np.ndarray]:
    """The mean, and each item's shrunk mean distance from it, `(I,)`."""
    mean = float(ratings.label.mean(dtype=np.float64))
    return mean, shrunk_means(ratings.item, ratings.label - mean, ratings.n_items, shrinkage)


def asked_of(domains: Domains, users: Judged) -> Asked:
    """The judged ratings one below the other."""
    task, _ = np.nonzero(users.real)
    row = np.searchsorted(domains.user_ids.to_numpy(), users.users.to_numpy()) + 1
    return Asked(row[task], users.item[users.real], users.label[users.real])


def rating_floors(domains: Domains, asked: Asked, rest: Domains, validation: Asked) -> dict[str, Predicted]:
    """The floors, and the control that is given a median."""
    mean, bias = item_biases(domains.target_ratings, ITEM_SHRINKAGE)
    labels, label = domains.source_ratings.label, validation.label
    of_rest = {
        pair: bias_prediction(rest, rest.source_ratings.label, validation, *pair) for pair in TUNED
    }  # On validation users, without their target ratings.
    best = min(TUNED, key=lambda pair: float(np.square(of_rest[pair] - label).mean()))
    tuned = bias_prediction(domains, labels, asked, *best)
    steps = np.unique(domains.target_ratings.label).astype(np.float64)
    cuts = ordinal.fit(of_rest[best], np.ones(len(label)), label, steps)
    median = ordinal.median(ordinal.probabilities(cuts, tuned, np.ones(len(tuned))), steps)
    untuned = bias_prediction(domains, labels, asked, ITEM_SHRINKAGE, USER_SHRINKAGE)
    constant = np.full(len(asked.item), mean)
    found = (constant, mean + bias[asked.item], untuned, tuned)
    floors = {name: Predicted(value, value) for name, value in zip(FLOORS, found, strict=False)}
    return floors | {CONTROL: Predicted(tuned, median)}


def predicted(method: CrossDomainMethod, users: Judged) -> Predicted:
    """What a fitted method says of the judged ratings."""
    catalogue = method.vocabulary.catalogue  # type: ignore[union-attr]
    state = method.adapt(users.support)
    item = {name: value[users.item] for name, value in catalogue.items()}
    mean = np.asarray(method.score(state, item), np.float64)[users.real]
    median = method.median(state, item)[users.real] if hasattr(method, "median") else mean
    return Predicted(mean, median)


def known_users(method: CrossDomainMethod, domains: Domains, test: Interactions) -> tuple[Predicted, Asked]:
    """The test users after nine tenths of their target ratings, judged on the last tenth."""
    last = pl.Series(np.random.default_rng(0).random(len(test)) < 0.1)
    users = judged(domains, test.filter(last))
    support = domains.support(users.users, domains.source, test.filter(~last))
    return predicted(method, users._replace(support=support)), asked_of(domains, users)


def rating_cell(
    data: Interactions, source: str, target: str, beta: float, seed: int, quick: bool, console: Console
) -> dict[str, tuple[Predicted, Asked]]:
    """Every floor and every method in one cell, with one draw of users."""
    split = tmr.data.by_domain(data, source=source, target=target, test_share=beta, seed=seed)
    domains = Domains.of(split["source"], split.train)
    users = judged(domains, split.test)
    asked = asked_of(domains, users)
    shared = domains.shared_users
    drawn = np.random.default_rng(seed).permutation(shared)[: int(VALIDATION_SHARE * len(shared))]
    held_out = pl.col("user_id").is_in(domains.user_ids[(drawn - 1).tolist()].implode())
    rest = Domains.of(split["source"], split.train.filter(~held_out))
    validation = asked_of(rest, judged(rest, split.train.filter(held_out)))
    found = rating_floors(domains, asked, rest, validation)
    joint = cross_domain(JointTraining(32, seed=seed), split["source"], split.train, validation_share=0.0)
    found[FLOORS[-1]] = predicted(joint, users)
    results = {name: (value, asked) for name, value in found.items()}
    for name, method in rating_methods(seed, quick).items():
        start = time.perf_counter()
        fitted = cross_domain(method, split["source"], split.train, validation_share=VALIDATION_SHARE, seed=seed)
        results[name] = (predicted(fitted, users), asked)
        console.print(f"  {name}: {time.perf_counter() - start:.0f} s", highlight=False)
        if name == OURS:
            results[KNOWN] = known_users(fitted, domains, split.test)
    return results


def flat(cell: dict[str, tuple[Predicted, Asked]]) -> dict[str, np.ndarray]:
    """The arrays of a cell by name and field."""
    parts = ((name, part) for name, pair in cell.items() for part in pair)
    return {f"{name}/{field}": value for name, part in parts for field, value in part._asdict().items()}


def rating_errors(value: Predicted, asked: Asked, low: float, high: float) -> dict[str, float]:
    """Errors over all ratings of a cell, predictions clipped."""
    mean, median = (np.clip(part, low, high) for part in value)
    return {
        "mae": float(np.abs(median - asked.label).mean()),
        "rmse": float(np.sqrt(np.square(mean - asked.label).mean())),
        "mae_of_mean": float(np.abs(mean - asked.label).mean()),
    }


def user_errors(cells: list[tuple[Predicted, Asked]], low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute and squared errors of each user, `(U,)`, over all seeds that hid the user's ratings."""
    user = np.concatenate([asked.user for _, asked in cells])
    label = np.concatenate([asked.label for _, asked in cells])
    mean, median = (np.clip(np.concatenate(part), low, high) for part in zip(*(p for p, _ in cells), strict=True))
    size = int(user.max()) + 1
    count = np.bincount(user, minlength=size)
    seen = count > 0
    errors = (np.abs(median - label), np.square(mean - label))
    absolute, squared = (np.bincount(user, error, size)[seen] / count[seen] for error in errors)
    return absolute, squared


def rating_tables(
    options: report.Options, console: Console
) -> tuple[dict[str, report.Rows], list[report.Target], dict[str, Any]]:
    """The tables of all cells, and what they are held to."""
    data, pairs, betas = planted_ratings() if options.data is None else douban(options)
    low, high = float(data.table["label"].min()), float(data.table["label"].max())  # type: ignore[arg-type]
    figures: dict[str, report.Rows] = {}
    targets, against = [], []
    for source, target in pairs:
        for beta in betas:
            cells: dict[str, list[tuple[Predicted, Asked]]] = {}
            for seed in range(options.seeds):
                console.print(f"{source} -> {target}, beta {beta}, seed {seed}", highlight=False)
                cell = (data, source, target, beta, seed, options.quick, console)
                file = options.parts / f"{source}-{target}-{beta}-{seed}.npz"
                arrays = kept(file, lambda cell=cell: flat(rating_cell(*cell)))  # type: ignore[misc]
                for name in dict.fromkeys(key.split("/")[0] for key in arrays):
                    value = Predicted(*(arrays[f"{name}/{part}"] for part in Predicted._fields))
                    asked = Asked(*(arrays[f"{name}/{part}"] for part in Asked._fields))
                    cells.setdefault(name, []).append((value, asked))
            rows = rating_rows(cells, low, high)
            title = f"{source} -> {target}, beta {beta}"
            figures[title] = rows
            by_name = {row["method"]: row for row in rows}
            for metric in ("mae", "rmse"):
                best = min(FLOORS, key=lambda name, metric=metric: by_name[name][metric])
                ratio = by_name[OURS][metric] / by_name[best][metric]
                targets.append(report.Target(f"{metric} over the best floor's, {title}", ratio, "at most", WANTED))
                side = ("mae", "rmse").index(metric)
                mine, floors = (user_errors(cells[name], low, high)[side] for name in (OURS, best))
                difference = paired_bootstrap(mine, floors)
                against.append(
                    {
                        "cell": title,
                        "error": "absolute" if metric == "mae" else "squared",
                        "best_floor": best,
                        "ratio": ratio,
                        "difference_per_user": difference.mean,
                        "low": difference.low,
                        "high": difference.high,
                        "p_value": difference.p_value,
                    }
                )
            for row in rows:
                console.print(f"  {row['method']}: {row['mae']:.4f} / {row['rmse']:.4f}", highlight=False)
    figures[f"{OURS} against the best floor"] = against
    return figures, targets, {"data": data.name, "betas": betas, "validation_share": VALIDATION_SHARE}


def rating_rows(cells: dict[str, list[tuple[Predicted, Asked]]], low: float, high: float) -> report.Rows:
    """A row for each method: means over seeds."""
    rows = []
    for name, found in cells.items():
        errors = [rating_errors(value, asked, low, high) for value, asked in found]
        means = {metric: float(np.mean([error[metric] for error in errors])) for metric in errors[0]}
        rows.append({"method": name, "floor": "yes" if name in FLOORS else "", **means, "seeds": len(found)})
    return rows


def douban(options: report.Options) -> tuple[Interactions, tuple, tuple]:
    """The ratings, the directions and the shares."""
    return tmr.data.load("douban_cdr", folder=options.data), DIRECTIONS, BETAS[:1] if options.quick else BETAS


def planted_ratings() -> tuple[Interactions, tuple, tuple]:
    """Made-up ratings in two domains, for a quick run without data."""
    made = tmr.data.load("synthetic", feedback="explicit", n_users=120, n_items=60, interactions_per_user=16, noise=0.2)
    domain = pl.when(pl.col("item_id") % 2 == 1).then(pl.lit("book")).otherwise(pl.lit("music"))
    return made.with_table(made.table.with_columns(domain=domain)), DIRECTIONS[:1], (0.5,)


# -- purchases ------------------------------------------------------------------------------------------------


def purchase_methods(quick: bool) -> dict[str, CrossDomainMethod]:
    """The ways to cross by name."""
    few = 1 if quick else None
    options: dict[str, Any] = {"support": (0, 100), "query": 20, "epochs": few or 6}
    if quick:
        options["negatives"] = 16
    made: list[CrossDomainMethod] = [
        EMCDR(32, epochs=few or 30),
        PTUPCDR(32, epochs=few or 10),
        KernelTransfer(),
        AdaptiveTransfer(KernelTransfer()),
        MetaTransfer(learner(32, 0), **options),
        FineTuning(learner(32, 0), source_epochs=few or 3, **options),
        DistilledTransfer(learner(32, 0), KernelTransfer(), **options),
    ]
    named = {AdaptiveTransfer.name: f"adaptive, {KernelTransfer.name}"}
    named[DistilledTransfer.name] = f"distilled {KernelTransfer.name}"
    return {named.get(method.name, method.name): method for method in made}


def purchase_tables(
    options: report.Options, console: Console
) -> tuple[dict[str, report.Rows], list[report.Target], dict[str, Any]]:
    """The table of one draw of households, and what it is held to."""
    quick = options.quick
    if quick:
        made = tmr.data.load("synthetic", n_users=120, n_items=80, interactions_per_user=16, noise=0.2)
        domain = pl.when(pl.col("item_id") % 2 == 1).then(pl.lit("GROCERY")).otherwise(pl.lit("DRUG GM"))
        data, least = made.with_table(made.table.with_columns(domain=domain)), 1
    else:
        data, least = tmr.data.load("completejourney", domain="department"), MIN_ITEM_USERS
    split = tmr.data.by_domain(data, seed=0, **PURCHASES)  # type: ignore[arg-type]
    domains = Domains.of(split["source"], split.train, min_item_users=least)
    users = judged(domains, split.test)
    console.print(f"{domains}, {len(domains.target_rows):,} products ranked, {len(users.users):,} households judged")
    item, rows = domains.candidates(), domains.target_rows
    counts = np.bincount(domains.target_ratings.item, minlength=domains.vocabulary.n_items)
    scores = {PURCHASE_FLOORS[0]: np.repeat(counts[None, rows].astype(np.float64), len(users.users), axis=0)}

    def scored(chosen: Any) -> dict[str, np.ndarray]:
        if isinstance(chosen, CrossDomainMethod):
            share = VALIDATION_SHARE
            cross_domain(chosen, split["source"], split.train, min_item_users=least, validation_share=share)
        else:
            chosen.fit(domains.joint_ratings)
        return {"scores": np.asarray(chosen.score(chosen.adapt(users.support), item))}

    floors = dict(zip(PURCHASE_FLOORS[1:], (ImplicitALS(64), ItemKNN(), EASE()), strict=True))
    for name, chosen in {**floors, **purchase_methods(quick)}.items():
        start = time.perf_counter()
        file = options.parts / f"purchases-{name}.npz"
        scores[name] = kept(file, lambda chosen=chosen: scored(chosen))["scores"]  # type: ignore[misc]
        console.print(f"  {name}: {time.perf_counter() - start:.0f} s", highlight=False)
    k = min(TOP_K, len(rows))
    found = {name: ranking_figures(value, users, rows, k) for name, value in scores.items()}
    best = max(PURCHASE_FLOORS, key=lambda name: found[name][0].mean())
    table = []
    for name, (recall, ndcg) in found.items():
        difference = paired_bootstrap(recall, found[best][0])
        table.append(
            {
                "method": name,
                "floor": "yes" if name in PURCHASE_FLOORS else "",
                f"recall@{TOP_K}": float(recall.mean()),
                f"ndcg@{TOP_K}": float(ndcg.mean()),
                "recall_less_best_floors": difference.mean,
                "low": difference.low,
                "high": difference.high,
            }
        )
    ours = next(row for row in table if row["method"] == f"adaptive, {KernelTransfer.name}")
    title = f"{PURCHASES['source']} -> {PURCHASES['target']}, {len(users.users):,} households"
    target = report.Target("recall less the best floor's, lower bound", ours["low"], "at least", 0.0)
    return {title: table}, [target], {**PURCHASES, "data": data.name, "min_item_users": least, "best_floor": best}


def ranking_figures(scores: np.ndarray, users: Judged, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and nDCG of each household, `(T,)`."""
    # Column 0 is no product, as everywhere.
    padded = np.concatenate([np.full((len(scores), 1), -np.inf), scores], axis=1)
    top = metrics.top_items(padded, k)
    relevant = np.where(users.real, np.searchsorted(rows, np.where(users.real, users.item, rows[0])) + 1, 0)
    length = users.real.sum(axis=1)
    return metrics.recall_at_k(top, relevant, length), metrics.ndcg_at_k(top, relevant, length)


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, "Users cold in one domain and known in another.", arguments, seeds=5)
    console = report.console()
    if options.data is None and not options.quick:
        raise DataError("`--data` must be a folder with Douban's book.parquet and music.parquet.")
    purchases, held, bought = purchase_tables(options, console)
    ratings, targets, rated = rating_tables(options, console)
    status = report.finish(
        options,
        config={"ratings": rated, "purchases": bought},
        figures={**ratings, **purchases},
        targets=[*targets, *held],
        console=console,
    )
    shutil.rmtree(options.parts, ignore_errors=True)
    return status


if __name__ == "__main__":
    report.run(main)
