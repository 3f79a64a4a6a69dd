"""The cold-start table, against numbers worked out by hand and recomputed from the written predictions."""

from typing import Any

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.data import Interactions, Vocabulary
from tfmetarec.evaluation import ColdStartTable, cold_start, fitted_floors, metric_names


class Oracle:
    """Recommends what it was told to, and remembers what it was shown."""

    def __init__(self, scores: np.ndarray):
        self.scores, self.lengths, self.supports = scores, [], []

    def adapt(self, support: Any) -> int:
        self.lengths.append(np.asarray(support.length))
        self.supports.append(np.asarray(support.item["item_id"]))
        return len(support.length)

    def score(self, state: int, item: Any) -> np.ndarray:
        rows = np.asarray(item["item_id"])
        return self.scores[np.broadcast_to(rows, (state, rows.shape[-1]))]


def shop() -> Interactions:
    """Two users who each met items 1..6 of 8, in that order and in reverse; two others met 7 and 8."""
    rows = [
        (user, item, time)
        for user, items in ((1, range(1, 7)), (2, range(6, 0, -1)))
        for time, item in enumerate(items)
    ]
    rows += [(user, item, 0) for user in (3, 4) for item in (7, 8)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Interactions.from_frames(table, feedback="implicit")


def test_the_support_comes_first_in_time_and_the_query_is_the_same_for_every_k() -> None:
    data = shop()
    vocabulary = Vocabulary.fit(data)
    oracle = Oracle(np.array([0, 1, 2, 3, 4, 9, 8, 7, 6], float))  # By row: 5 first, then 6, 7, 8, 4, ...
    table = cold_start({"oracle": oracle}, data, vocabulary=vocabulary, shots=(0, 2, 4), query=2, top_k=2)
    # User 1 is judged on items 5 and 6 whatever K: both are recommended. User 2 on items 2 and 1: neither is.
    assert table.per_user.filter(pl.col("user_id") == 1)["recall@2"].to_list() == [1.0, 1.0, 1.0]
    assert table.per_user.filter(pl.col("user_id") == 2)["recall@2"].to_list() == [0.0, 0.0, 0.0]
    assert [lengths.tolist() for lengths in oracle.lengths] == [[0, 0], [2, 2], [4, 4]]
    assert oracle.supports[1].tolist() == [
        [1, 2, 0, 0],
        [6, 5, 0, 0],
    ]  # As wide for every K, and nothing past the length.
    assert table.summary.filter((pl.col("metric") == "recall@2") & (pl.col("K") == 2))["mean"].item() == 0.5


def test_what_is_in_the_support_is_not_recommended_again() -> None:
    data = shop()
    vocabulary = Vocabulary.fit(data)
    liked_by_user_2 = Oracle(np.array([0, 5, 4, 0, 0, 8, 9, 0, 0], float))  # 6, 5, then 1, 2.
    table = cold_start({"oracle": liked_by_user_2}, data, vocabulary=vocabulary, shots=(2,), query=4, top_k=2)
    # User 2's support is 6 and 5, so 1 and 2 are left: both among its four query items 4, 3, 2, 1.
    assert table.per_user.filter(pl.col("user_id") == 2)["recall@2"].item() == 0.5


def test_users_with_too_few_interactions_are_counted() -> None:
    data = shop()
    table = cold_start(
        {"oracle": Oracle(np.zeros(9))}, data, vocabulary=Vocabulary.fit(data), shots=(4,), query=2, top_k=2
    )
    assert table.notes == ("2 users with fewer than 6 interactions were left out",)
    assert table.per_user["user_id"].to_list() == [1, 2]


def test_the_written_predictions_give_the_metrics_again(tmp_path: Any) -> None:
    data = tmr.data.load("synthetic", n_users=60, seed=1)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = Vocabulary.fit(split.train)
    path = tmp_path / "deep" / "predictions.parquet"
    floors = fitted_floors(split.train, vocabulary)
    table = cold_start(floors, split.test, vocabulary=vocabulary, shots=(0, 5), query=5, top_k=10, predictions=path)
    written = pl.read_parquet(path).sort("learner", "K", "user_id")
    again = [len(set(row["item_id"]) & set(row["relevant"])) / 5 for row in written.iter_rows(named=True)]
    assert again == table.per_user.sort("learner", "K", "user_id")["recall@10"].to_list()
    assert list(tmp_path.rglob("*.writing")) == []


def test_ratings_are_clipped_to_the_range_of_training_and_compared_with_the_labels() -> None:
    table = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [1, 2, 3, 1, 2, 3], "label": [1, 5, 3, 2, 4, 5]})
    data = Interactions.from_frames(table, feedback="explicit")
    always_nine = Oracle(np.full(4, 9.0))
    found = cold_start({"nine": always_nine}, data, vocabulary=Vocabulary.fit(data), shots=(0,), query=3)
    means = dict(found.summary.select("metric", "mean").iter_rows())
    assert means["mae"] == pytest.approx(((4 + 0 + 2) / 3 + (3 + 1 + 0) / 3) / 2)
    assert means["rmse"] == pytest.approx((np.sqrt((16 + 0 + 4) / 3) + np.sqrt((9 + 1) / 3)) / 2)


def test_equal_seeds_give_equal_tables_and_a_random_order_depends_on_the_seed() -> None:
    data = tmr.data.load("synthetic", n_users=40, feedback="explicit", seed=0)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = Vocabulary.fit(split.train)

    def run(seed: int) -> pl.DataFrame:
        options = {"shots": (3,), "query": 5, "order": "random", "train": split.train}
        return cold_start({}, split.test, vocabulary=vocabulary, seed=seed, **options).per_user

    assert run(0).equals(run(0))
    assert not run(0).equals(run(1))


def test_comparing_a_learner_with_itself_finds_nothing() -> None:
    data = tmr.data.load("synthetic", n_users=60, seed=1)
    split = tmr.data.cold_users(data, seed=0)
    vocabulary = Vocabulary.fit(split.train)
    table = cold_start({}, split.test, vocabulary=vocabulary, train=split.train, shots=(0, 5), query=5)
    assert not table.compare("popularity", "popularity", 5).significant
    # With five interactions the planted groups are plain to item-KNN and unknown to popularity.
    assert table.compare("item-KNN", "popularity", 5).mean > 0
    assert table.best_floor(5, ["popularity"]) != "popularity"
    assert table.pivot().columns == ["learner", "0", "5"]
    with pytest.raises(KeyError, match="no learner 'nobody' at K=5"):
        table.compare("nobody", "popularity", 5)
    assert table.summary["metric"].unique(maintain_order=True).to_list() == metric_names(vocabulary)
    with pytest.raises(ValueError, match=r"`metric` must be one of recall@20.*Received: metric='mae'"):
        table.pivot("mae")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": ()}, r"`shots` must be one or more ints, at least 0. Received: shots=\(\)"),
        ({"shots": (-1,)}, "`shots` must be one or more ints"),
        ({"query": 0}, "`query` must be an int, at least 1. Received: query=0"),
        ({"top_k": 0}, "`top_k` must be an int, at least 1. Received: top_k=0"),
        ({"order": "backwards"}, "`order` must be 'time' or 'random'. Received: order='backwards'"),
        ({"query": 500}, "need 501 interactions of a user together. Received: users with at most 6"),
        ({"shots": (1, 1)}, r"`shots` must be different. Received: shots=\(1, 1\)"),
        ({"shots": 5}, "`shots` must be one or more ints"),
        ({"confidence": 1.0}, "`confidence` must be between 0 and 1"),
        ({"seed": -1}, "`seed` must be an int, at least 0. Received: seed=-1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    data = shop()
    with pytest.raises(ValueError, match=message):
        cold_start(
            {"o": Oracle(np.zeros(9))}, data, vocabulary=Vocabulary.fit(data), **{"shots": (1,), "query": 1, **options}
        )


def test_without_a_vocabulary_it_says_so() -> None:
    with pytest.raises(ValueError, match="`vocabulary` must be given"):
        cold_start({"o": Oracle(np.zeros(9))}, shop(), shots=(1,), query=1)


def test_an_item_met_twice_is_not_in_support_and_query_alike() -> None:
    """Viewed, then bought: the purchase would be known from the view, and excluded though relevant."""
    rows = [("ann", item, time, "view") for time, item in enumerate("abcd")]
    rows += [("ann", item, 10 + time, "purchase") for time, item in enumerate("abcd")]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "behavior"], orient="row")
    data = Interactions.from_frames(table, feedback="implicit")
    oracle = Oracle(np.array([0, 4, 3, 2, 1], float))
    found = cold_start({"oracle": oracle}, data, vocabulary=Vocabulary.fit(data), shots=(0, 2), query=2, top_k=2)
    assert found.notes == ("4 interactions with an item that the user had already met were left out",)
    assert found.per_user["recall@2"].to_list() == [0.0, 1.0]  # K=0: a, b for c, d. K=2: c, d.


def test_a_recommender_that_scores_wrongly_is_named() -> None:
    data = shop()
    vocabulary = Vocabulary.fit(data)

    class Narrow(Oracle):
        def score(self, state: int, item: Any) -> np.ndarray:
            return super().score(state, item)[:, :-1]

    options = {"vocabulary": vocabulary, "shots": (1,), "query": 1}
    with pytest.raises(ValueError, match=r"'narrow' at K=1 must score \(4, 9\) items here. Received: shape \(4, 8\)"):
        cold_start({"narrow": Narrow(np.zeros(9))}, data, **options)
    with pytest.raises(ValueError, match="'nan' at K=1 must give finite scores. Received: NaN or infinity"):
        cold_start({"nan": Oracle(np.full(9, np.nan))}, data, **options)
    with pytest.raises(ValueError, match="must not be called like a floor. Received: 'popularity'"):
        cold_start({"popularity": Oracle(np.zeros(9))}, data, train=data, **options)


def test_at_k_0_nothing_of_the_user_shows_even_past_the_length() -> None:
    data = shop()
    oracle = Oracle(np.zeros(9))
    cold_start({"oracle": oracle}, data, vocabulary=Vocabulary.fit(data), shots=(0,), query=2)
    assert not oracle.supports[0].any()


def test_kinds_of_feedback_are_not_mixed() -> None:
    ratings = Interactions.from_frames(shop().table.with_columns(pl.lit(3.0).alias("label")), feedback="explicit")
    with pytest.raises(ValueError, match="must have the feedback that `vocabulary` was fitted on, implicit"):
        cold_start({"o": Oracle(np.zeros(9))}, ratings, vocabulary=Vocabulary.fit(shop()), shots=(1,), query=1)


def test_a_list_longer_than_the_catalogue_is_noted() -> None:
    found = cold_start({"o": Oracle(np.zeros(9))}, shop(), vocabulary=Vocabulary.fit(shop()), shots=(1,), query=1)
    assert "the catalogue has 8 items: lists are that long" in found.notes
    assert "recall@8" in found.summary["metric"].to_list()
    assert found.summary["metric"].to_list() == metric_names(Vocabulary.fit(shop()), 20)


def test_figures_by_user_are_those_of_one_k_or_the_mean_over_all() -> None:
    rows = [("a", k, user, 0.1 * user + k) for k in (0, 1) for user in (2, 1)]
    per_user = pl.DataFrame(rows, schema=["learner", "K", "user_id", "mae"], orient="row")
    table = ColdStartTable(pl.DataFrame({"metric": ["mae"]}), per_user, "explicit")
    assert table.by_user("a").tolist() == pytest.approx([0.6, 0.7])
    assert table.by_user("a", 1, "mae").tolist() == pytest.approx([1.1, 1.2])
    with pytest.raises(KeyError, match="no learner 'b' at K=1 in this table"):
        table.by_user("b", 1)
    with pytest.raises(ValueError, match="`metric` must be one of mae. Received: metric='recall'"):
        table.by_user("a", metric="recall")


def test_what_lists_are_like_stands_in_the_same_table() -> None:
    data = shop()
    vocabulary = Vocabulary.fit(data)
    oracle = Oracle(np.array([0, 1, 2, 3, 4, 9, 8, 7, 6], float))  # 5 and 6, of two of the four users; then 7 and 8.
    table = cold_start({"o": oracle}, data, vocabulary=vocabulary, shots=(0,), query=6, top_k=2, predictions=True)
    assert table.per_user["novelty@2"].to_list() == pytest.approx([1.0, 1.0])  # -log2(2 / 4)
    assert "diversity@2" not in table.per_user.columns  # Items have no categories.
    assert table.predictions is not None
    assert table.predictions["item_id"].to_list() == [[5, 6], [5, 6]]
    assert table.predictions["score"].to_list() == [[9.0, 8.0], [9.0, 8.0]]
    assert table.predictions["relevant"].to_list() == [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]
    plain = cold_start({"o": oracle}, data, vocabulary=vocabulary, shots=(0,), query=6, top_k=2)
    assert plain.predictions is None
    assert plain.summary.equals(table.summary)
