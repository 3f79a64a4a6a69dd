"""Films that nobody has rated yet: content and class prototypes against what is left without them.

MovieLens-1M in its published states: everything is learned on `train`; the tasks are the users with 13 to 100 ratings
in the state, 10 of them drawn as the query, the rest (or only 5, or none) as the support, so that the support too is of
films never seen in training. Figures are means over users and then over seeds, predictions clipped to 1-5.

The floors: `global mean`; `item+user bias`, of which only the user's is left. The rivals: `content tower`, a
`TwoTower` meta-trained end to end with Ridge, whose films have what its content encoder makes of them; `content tower +
prototypes`, the same completed by `zero_shot`. The method: `MF + prototypes`, the vectors of a matrix factorisation,
completed by `zero_shot`, a user folded in by Ridge; `and groups` starts users at their demographic group. `as medians`
are the same scores through `MedianRatings`, which keeps their order: absolute error asks for the median of ratings, and
squared error for the mean, so each has its row, and the floor has both too. The targets are held against the medians.

Settings were chosen, and the medians' thresholds are fitted, on a validation part made out of `train` in the image of
the test: a fifth of the users, and the films of its last two years, as the cold films of the test are newer than all
others. `--quick` without `--data` takes made-up ratings.
"""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import polars as pl
import tensorflow as tf

import tfmetarec as tmr
from benchmarks import report
from tfmetarec.data import DataError, Interactions, Split, Vocabulary
from tfmetarec.evaluation import metrics, paired_bootstrap
from tfmetarec.models.baselines import BiasedMF, GlobalMean, ItemUserBias, Ratings
from tfmetarec.tasks import Support
from tfmetarec.tasks.table import TaskTable
from tfmetarec.transfer.classifier import PrototypeClassifier, class_episodes
from tfmetarec.transfer.median import MedianRatings
from tfmetarec.transfer.prototypes import class_means, clusters
from tfmetarec.transfer.zero_shot import two_tower_from_vectors, zero_shot

NAME = "zero_shot"
STATES = ("item_cold", "both_cold")
FEWEST, MOST, QUERY = 13, 100, 10
SHORT = 5
NEW_YEARS = 2  # Of the validation part: its films are of the last years of `train`.
VALIDATION_USERS = 0.2
LISTED = 12  # Longest list of a film's people or genres that is kept.
FACTORIZATION = {"factors": 16, "regularization": 0.1}
FOLD_IN = {"regularization": 1.0, "level_regularization": 4.0}
PROTOTYPES = {"interactions_for_trust": 60.0, "caution": 2.0}
SAMPLE = 1000  # Films that leaving one out looks at.
GROUPS = ("gender", "age", "occupation", "segment")
TOWER = {"embedding_dim": 16, "item_hidden": (32,), "dropout": 0.3, "id_dropout": 0.7}
TOWER_STEPS, TOWER_OPTIMIZER = 400, {"learning_rate": 2e-3, "weight_decay": 0.05}
CLASSIFIER_STEPS = 100
RATINGS = (1, 2, 3, 4, 5)
RATING_RANGE = (1, 5)
METHOD, MEDIANS = "MF + prototypes", " as medians"
TARGETS = {"mae": ("at most", 0.85), "ndcg_at_5": ("at least", 0.70)}
_CHUNK = 256  # Users adapted and scored at once.

Recommenders = dict[str, Any]


class Tasks(NamedTuple):
    """Users of one state, their support and their query."""

    users: int
    table: TaskTable
    support: np.ndarray
    length: np.ndarray
    query: np.ndarray

    def chunks(self) -> Iterator[tuple[Support, dict[str, np.ndarray], np.ndarray]]:
        """Supports, the features of the query's items, and their labels."""
        table = self.table
        for first in range(0, self.users, _CHUNK):
            part = slice(first, first + _CHUNK)
            shown, asked = self.support[part], self.query[part]
            users = table.users.take(table.user[shown[:, 0]])
            support = Support(users, table.items.take(table.item[shown]), table.label[shown], self.length[part])
            yield support, table.items.take(table.item[asked]), table.label[asked]


def tasks(interactions: Interactions, vocabulary: Vocabulary, seed: int, support: int = MOST - QUERY) -> Tasks:
    """The protocol's tasks: who has 13 to 100 ratings, 10 at random as the query, of the rest at most `support`."""
    counts = interactions.table.group_by("user_id").len().filter(pl.col("len").is_between(FEWEST, MOST))
    table = TaskTable.build(
        interactions.filter(pl.col("user_id").is_in(counts["user_id"].implode())), vocabulary, min_interactions=FEWEST
    )
    keys = np.random.default_rng(seed).random(len(table.item))
    shuffled = np.lexsort((keys, np.repeat(np.arange(len(table)), table.sizes)))
    first, length = table.start[:-1, None], np.minimum(table.sizes - QUERY, support)
    place = np.minimum(np.arange(max(int(length.max()), 1)), np.maximum(length[:, None] - 1, 0))
    query = shuffled[first + np.arange(QUERY)]
    return Tasks(len(table), table, shuffled[first + QUERY + place], length.astype(np.int32), query)


def predictions(recommender: Any, asked: Tasks) -> np.ndarray:
    """Scores `(T, Q)`."""
    scores = [recommender.score(recommender.adapt(support), item) for support, item, _ in asked.chunks()]
    return np.concatenate([np.asarray(part, np.float64) for part in scores])


def judged(scores: np.ndarray, asked: Tasks, seed: int) -> dict[str, float]:
    """The metrics, means over users."""
    labels = asked.table.label[asked.query].astype(np.float64)
    clipped = np.clip(scores, *RATING_RANGE)
    return {
        "mae": float(metrics.mae(labels, clipped).mean()),
        "rmse": float(metrics.rmse(labels, clipped).mean()),
        "ndcg_at_5": float(metrics.rating_ndcg_at_k(labels, scores, k=5, seed=seed).mean()),
    }


def films(folder: Path) -> Split:
    """MovieLens-1M in its published states, its films with everything that is known before anybody has seen them."""
    interactions = tmr.data.load("movielens", folder=folder)
    states, extra = folder / "split_metahin.parquet", folder / "movies_extra.parquet"
    for file in (states, extra):
        if not file.is_file():
            raise DataError(f"`--data` must be a folder with {file.name}. Received: --data {folder}")
    writers = pl.read_parquet(extra).select("writers", "released", item_id=pl.col("movie_id"))
    items = interactions.items.join(
        writers.cast({"item_id": interactions.items.schema["item_id"]}), on="item_id", how="left", maintain_order="left"
    )
    split = tmr.data.published_states(interactions, pl.read_parquet(states))
    known = split.train.table["item_id"].unique()
    return _with_items(split, _with_texts(film_classes(items), known))


def film_classes(items: pl.DataFrame) -> pl.DataFrame:
    """Films with classes of many kinds: each is a column, and there is a prototype for each of its values."""
    year = pl.col("year").fill_null(pl.col("year").median())
    text = pl.col("writers").fill_null("")
    people = text.str.replace_all(r"\s*\([^)]*\)", "").str.split(", ").list.filter(pl.element() != "")
    name = pl.col("title").str.replace(r"\s*\(\d{4}\)\s*$", "")
    plain = name.str.replace_all(r"\s*\([^)]*\)", "").str.replace(r", (?:The|A|An)$", "")
    number = r"\s+(?:\d+|I{1,3}|IV|V|VI{0,3}|IX|X)$"
    many = {f"of_{years}_years": (year / years).floor().cast(pl.Int32).cast(pl.String) for years in (2, 5, 10)}
    rated = pl.col("mpaa").fill_null("unrated")
    items = items.with_columns(
        writers=people.list.unique(maintain_order=True),
        credits=text.str.extract_all(r"\(([^)]*)\)").list.unique(maintain_order=True),
        month=pl.col("released").fill_null("").str.extract(r"([A-Z][a-z]{2})", 1),
        genre_set=pl.col("genres").list.sort().list.join("|"),
        lead=pl.col("actors").list.first(),
        cast_size=pl.col("actors").list.len().cast(pl.String),
        series=plain.str.split(":").list.first().str.replace(number, "").str.to_lowercase(),
        is_sequel=name.str.contains(r"\s(?:\d|II|III|IV|V|VI{1,3}|IX|X)\b").cast(pl.String),
        is_foreign=pl.col("title").str.contains(
            r", (?:La|Le|Les|L'|Il|El|Los|Las|Das|Der|Die)\b|\([A-Z].*\) \(\d{4}\)"
        ),
        plot_size=(pl.col("plot").fill_null("").str.split(" ").list.len() // 10).clip(0, 15).cast(pl.String),
        **many,
    ).with_columns(
        pl.col("is_foreign").cast(pl.String),
        crew=pl.concat_list(pl.col("directors").fill_null([]), "writers").list.unique(maintain_order=True),
        genre_pairs=pl.struct(pl.col("genres").list.sort()).map_elements(_pairs, pl.List(pl.String)),
        **{f"genres_{of}": _crossed(pl.col(of)) for of in ("of_5_years", "of_10_years")},
        genres_rated=_crossed(rated),
        rated_of_10_years=pl.concat_str(rated, "of_10_years", separator=" "),
    )
    people = pl.concat_list("crew", pl.col("actors").fill_null([])).list.unique(maintain_order=True)
    return items.with_columns(people=people).drop("released")


def _with_items(split: Split, items: pl.DataFrame) -> Split:
    parts = {}
    for part, of in split.parts.items():
        parts[part] = Interactions.from_frames(
            of.table, users=of.users, items=items, feedback="explicit", item_name="title", name=of.name
        )
    return Split(parts, split.seed, split.notes)


def _pairs(row: dict[str, list[str]]) -> list[str]:
    genres = row["genres"]
    return [f"{a} {b}" for place, a in enumerate(genres) for b in genres[place + 1 :]]


def _crossed(other: pl.Expr) -> pl.Expr:
    """Each genre together with another class: "Comedy 199"."""
    return pl.concat_list(
        [pl.concat_str(pl.col("genres").list.get(place, null_on_oob=True), other, separator=" ") for place in range(6)]
    ).list.drop_nulls()


def _with_texts(items: pl.DataFrame, known: pl.Series) -> pl.DataFrame:
    """Sentence vectors of plots and titles, and clusters of the plots of training films."""
    from tfmetarec.transfer.text_vectors import text_vectors

    plot, title = (text_vectors(items[name].to_list()) for name in ("plot", "title"))
    is_known = items["item_id"].is_in(known.implode()).to_numpy()
    columns = {}
    for name, vectors in (("plot_vector", plot), ("title_vector", title)):
        centred = vectors - vectors[is_known].mean(0)
        centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
        columns[name] = pl.Series(name, centred, pl.Array(pl.Float32, centred.shape[1]))
        if name == "plot_vector":
            for n_clusters in (20, 80):
                found = clusters(centred[is_known], n_clusters)
                columns[f"plot_cluster_{n_clusters}"] = pl.Series(found.nearest(centred)).cast(pl.String)
    return items.drop("plot").with_columns(**columns)


def made_up(seed: int = 0) -> Split:
    """Planted ratings in the same states, for a quick run without data."""
    made = tmr.data.load(
        "synthetic", n_users=200, n_items=200, n_groups=8, interactions_per_user=90, feedback="explicit", seed=seed
    )
    items = made.items.with_columns(
        title=pl.format("film {}", "item_id"), genres=pl.concat_list("group"), year=1990.0 + pl.col("item_id") % 10
    )
    new, cold = items.filter(pl.col("year") >= 1998)["item_id"], list(range(40))
    is_new, is_cold = (made.table[name].is_in(of) for name, of in (("item_id", new.implode()), ("user_id", cold)))
    rows = {"train": ~is_new & ~is_cold, "item_cold": is_new & ~is_cold, "both_cold": is_new & is_cold}
    parts = {
        name: Interactions.from_frames(
            made.table.filter(of), users=made.users, items=items, feedback="explicit", item_name="title", name=made.name
        )
        for name, of in rows.items()
    }
    return Split(parts, seed)


def validation(train: Interactions, *, latest: bool = False) -> Split:
    """A split of `train` in the image of the published states: newest films and some users held out.

    Args:
        latest: whether the users held out are those who came last, as those of the published states did, or any.
    """
    years = train.items.select("item_id", "year")
    table = train.table.join(years, on="item_id", how="left", maintain_order="left")
    if latest:
        came = table.group_by("user_id").agg(pl.col("timestamp").min()).sort("timestamp", "user_id", descending=True)
        users = came["user_id"].to_numpy()
    else:
        users = np.random.default_rng(0).permutation(table["user_id"].unique().sort().to_numpy())
    held = users[: int(VALIDATION_USERS * len(users))]
    is_new = (table["year"] > table["year"].max() - NEW_YEARS).fill_null(False)
    is_cold = table["user_id"].is_in(pl.Series(held).implode())
    rows = {"train": ~is_new & ~is_cold, "item_cold": is_new & ~is_cold, "both_cold": is_new & is_cold}
    rows["user_cold"] = ~is_new & is_cold
    return Split({name: train.filter(chosen) for name, chosen in rows.items()}, seed=0)


def fitted(train: Interactions, vocabulary: Vocabulary, seed: int, sample: int, rival_steps: int = 0) -> Recommenders:
    """Floors and the method, and the rivals if they get any steps, learned on `train` alone."""
    table = TaskTable.build(train, vocabulary)
    user, item = np.repeat(np.arange(1, len(table) + 1), table.sizes), table.items.features["item_id"][table.item]
    ratings = Ratings(user, item, table.label, len(table) + 1, vocabulary.n_items)
    factors = BiasedMF(**FACTORIZATION, seed=seed).fit(ratings)
    found: Recommenders = {each.name: each.fit(ratings) for each in (GlobalMean(), ItemUserBias())}
    found[factors.name] = factors
    options = {**PROTOTYPES, "seed": seed, "sample": sample, "item_features": item_features(vocabulary)}
    if rival_steps:
        tower = content_tower(train, vocabulary, seed, rival_steps)
        found["content tower"] = tower
        found["content tower + prototypes"] = zero_shot(tower, train, **options)
    learner = tmr.meta.Ridge(two_tower_from_vectors(vocabulary, factors.items, level=factors.mean), **FOLD_IN)
    found[METHOD] = zero_shot(learner, train, **options)
    groups = [spec.name for spec in vocabulary.specs.user if spec.name in GROUPS]
    found[METHOD + " and groups"] = zero_shot(found[METHOD], train, items=False, user_features=groups, seed=seed)
    return found


def item_features(vocabulary: Vocabulary) -> list[str]:
    """What prototypes are made of. Not the year as a number, which would be carried on in a straight line."""
    return [spec.name for spec in vocabulary.specs.item if spec.name not in ("item_id", "item_level", "year")]


def content_tower(train: Interactions, vocabulary: Vocabulary, seed: int, steps: int) -> Any:
    """A two-tower model meta-trained with Ridge: films without a row are what its content encoder makes of them."""
    learner = tmr.meta.Ridge(tmr.models.TwoTower(vocabulary, **TOWER, seed=seed), **FOLD_IN)
    learner.compile(optimizer=keras.optimizers.AdamW(**TOWER_OPTIMIZER))
    options = {"tasks_per_batch": 64, "order": "random", "min_interactions": FEWEST, "seed": seed}
    episodes = tmr.tasks.user_episodes(train, vocabulary, support=(5, 60), query=QUERY, **options)
    learner.fit(episodes, steps_per_epoch=steps, verbose=0)
    return learner


def with_medians(found: Recommenders, held: Split, vocabulary: Vocabulary, judged_by: Recommenders, seed: int) -> None:
    """Adds recommenders of `judged_by` as medians, with thresholds from their twins in `found` on validation users."""
    asked = [tasks(held[state], vocabulary, seed, support) for state in STATES for support in (MOST, SHORT)]
    labels = np.concatenate([each.table.label[each.query].ravel() for each in asked])
    for name in (METHOD, ItemUserBias.name):
        scores = np.concatenate([predictions(found[name], each).ravel() for each in asked])
        medians = MedianRatings(judged_by[name], RATINGS).fit_scores(scores, labels)
        judged_by[name + MEDIANS] = medians


def genres_never_trained_on(split: Split, seed: int, quick: bool) -> report.Rows:
    """Genres of new films told from their plots, for a third of the genres, on which the classifier was not trained."""
    items = split.train.items
    known = items["item_id"].is_in(split.train.table["item_id"].unique().implode()).to_numpy()
    if "plot_vector" in items.columns:
        plots = items["plot_vector"].to_numpy()
    else:  # Made-up films have no plots.
        plots = np.random.default_rng(seed).normal(size=(items.height, 8)).astype(np.float32)
    counts = items["genres"].explode().drop_nulls().value_counts().sort("count", "genres", descending=[True, False])
    belongs = np.stack([items["genres"].list.contains(name).to_numpy() for name in counts["genres"]], 1)
    is_target = np.arange(counts.height) % 3 == 1  # Large and small ones.
    source = np.where(belongs[:, ~is_target], np.arange(1, (~is_target).sum() + 1), 0)
    trained = known & ~belongs[:, is_target].any(1)
    target = np.where(belongs[:, is_target].sum(1) == 1, belongs[:, is_target].argmax(1) + 1, 0)
    members, asked = known & (target > 0), ~known & (target > 0)
    n_classes = 1 + int(is_target.sum())

    def row(name: str, answer: np.ndarray) -> dict[str, Any]:
        right, of = answer == target[asked], target[asked]
        each = float(np.mean([right[of == genre].mean() for genre in np.unique(of)]))
        case = {"prototypes": name, "genres": n_classes - 1, "films": len(of)}
        return {**case, "accuracy": float(right.mean()), "mean_of_genres": each}

    largest = np.bincount(target[members]).argmax()
    means = np.asarray(class_means(plots[members], target[members], n_classes).mean)[1:]
    nearest = 1 + np.square(plots[asked][:, None] - means).sum(2).argmin(1)
    classifier = PrototypeClassifier(plots.shape[1], embedding_dim=plots.shape[1], temperature=10.0, seed=seed)
    classifier.compile(optimizer=keras.optimizers.Adam(3e-4))
    episodes = class_episodes(plots[trained], source[trained], ways=4, shots=10, queries=5, seed=seed)
    classifier.fit(episodes, steps_per_epoch=5 if quick else CLASSIFIER_STEPS, verbose=0)
    prototypes = classifier.prototypes(plots[members], target[members], n_classes)
    told = np.argmax(classifier.classify(plots[asked], prototypes), 1)
    return [
        row("none: the largest genre", np.full(len(nearest), largest)),
        row("plot vectors as they are", nearest),
        row("trained on other genres", told),
    ]


def measured(
    split: Split, seed: int, quick: bool, say: Callable[[str], None]
) -> tuple[report.Rows, dict[str, np.ndarray]]:
    """One seed: everything is chosen on validation users and learned, then the test users are asked once."""
    held = validation(split.train)
    sample = 200 if quick else SAMPLE
    started = time.perf_counter()
    vocabulary = Vocabulary.fit(held.train, max_list_length=LISTED)
    rehearsal = fitted(held.train, vocabulary, seed, sample)
    whole = Vocabulary.fit(split.train, max_list_length=LISTED)
    found = fitted(split.train, whole, seed, sample, TOWER_STEPS // 40 if quick else TOWER_STEPS)
    with_medians(rehearsal, held, vocabulary, found, seed)
    say(f"seed {seed}: learned in {time.perf_counter() - started:.0f} s")
    rows, errors = [], {}
    for state in STATES:
        for support in (MOST, SHORT, 0):
            asked = tasks(split[state], whole, seed, support)
            labels = asked.table.label[asked.query]
            for name, recommender in found.items():
                scores = predictions(recommender, asked)
                shown = "all" if support == MOST else str(support)
                case = {"state": state, "support": shown, "users": asked.users, "recommender": name}
                rows.append({**case, **judged(scores, asked, seed)})
                errors[f"{state} {shown} {name}"] = metrics.mae(labels, np.clip(scores, *RATING_RANGE))
        say(f"seed {seed}: {state} asked")
    return rows, errors


def differences(errors: dict[str, np.ndarray]) -> report.Rows:
    """How much less the method misses by than the floor and the rival, over the users of the first seed."""
    rows = []
    pairs = ((METHOD, ItemUserBias.name), (METHOD, "content tower"))
    pairs += ((METHOD + MEDIANS, ItemUserBias.name + MEDIANS),)
    for state in STATES:
        for method, other in pairs:
            found = paired_bootstrap(errors[f"{state} all {method}"], errors[f"{state} all {other}"])
            rows.append({"state": state, "method": method, "against": other, "mae": found.mean})
            rows[-1] |= {"low": found.low, "high": found.high}
    return rows


def averaged(rows: report.Rows) -> report.Rows:
    """The rows of all seeds as one for each case: means, and of the MAE its deviation over seeds."""
    cases: dict[tuple, report.Rows] = {}
    for row in rows:
        cases.setdefault(tuple(row[name] for name in ("state", "support", "users", "recommender")), []).append(row)
    means = []
    for (state, support, users, recommender), same in cases.items():
        case = {"state": state, "support": support, "users": users, "recommender": recommender}
        figures = {name: float(np.mean([row[name] for row in same])) for name in ("mae", "rmse", "ndcg_at_5")}
        means.append({**case, **figures, "mae_over_seeds": float(np.std([row["mae"] for row in same]))})
    return means


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns its exit status."""
    options = report.read_options(NAME, "Predicts ratings of films that nobody has rated.", arguments, seeds=5)
    console = report.console()
    tf.get_logger().setLevel(logging.ERROR)  # It takes the first trace of each learner for retracing one function.

    def say(text: str) -> None:
        console.print(text, highlight=False)

    if options.data is None and not options.quick:
        raise DataError("`--data` must be a folder with MovieLens-1M, its published states and `movies_extra.parquet`.")
    if options.data is None:
        split = made_up()
        say("without `--data` a quick run takes made-up ratings")
    else:
        split = films(options.data)
        if options.quick:
            split = fewer(split)
    rows, errors = [], {}
    for seed in range(options.seeds):
        found, of_users = measured(split, seed, options.quick, say)
        rows += found
        errors = errors or of_users
    means = averaged(rows)
    by_case = {(row["state"], row["support"], row["recommender"]): row for row in means}
    targets = [
        report.Target(f"{state} {metric}", by_case[state, "all", METHOD + MEDIANS][metric], *bound)
        for state in STATES
        for metric, bound in TARGETS.items()
    ]
    figures = {
        "Ratings of films never seen": means,
        "Paired differences in MAE, seed 0": differences(errors),
        "Genres never trained on": genres_never_trained_on(split, 0, options.quick),
    }
    config = {
        "data": split.train.name,
        "factorization": FACTORIZATION,
        "fold_in": FOLD_IN,
        "prototypes": PROTOTYPES,
        "groups": GROUPS,
        "tower": {**TOWER, "steps": TOWER_STEPS, "optimizer": TOWER_OPTIMIZER},
        "chosen_on": f"films of the last {NEW_YEARS} years of train, {VALIDATION_USERS:.0%} of its users held out",
    }
    return report.finish(options, config=config, figures=figures, targets=targets, console=console)


def fewer(split: Split, users: int = 300) -> Split:
    """The same with few users, for a quick run."""
    kept = split.train.table["user_id"].unique().sort().head(users)
    cold = split["both_cold"].table["user_id"].unique().sort().head(users)
    kept = pl.concat([kept, cold]).implode()
    return Split({name: part.filter(pl.col("user_id").is_in(kept)) for name, part in split.parts.items()}, split.seed)


if __name__ == "__main__":
    report.run(main)
