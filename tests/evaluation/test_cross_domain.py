import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.evaluation import cross_domain
from tfmetarec.transfer.cross_domain import Domains


def interactions(rows, feedback):
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "label"], orient="row")
    return tmr.data.Interactions.from_frames(frame, feedback=feedback, name="shop")


SOURCE = [(1, 10, 2.0), (1, 11, 4.0), (2, 10, 5.0), (3, 11, 1.0), (3, 10, 3.0), (3, 20, 3.0)]
TARGET = [(1, 20, 4.0), (1, 21, 2.0), (2, 22, 5.0), (2, 20, 1.0), (1, 22, 1.0)]


@pytest.fixture(scope="module", params=["implicit", "explicit"])
def domains(request):
    return Domains.of(interactions(SOURCE, request.param), interactions(TARGET, request.param))


class Recording:
    """Scores every item by a number of its own, and remembers what it was asked."""

    def __init__(self, domains, scores):
        self.table = np.full(domains.vocabulary.n_items, np.nan)
        for item, score in scores.items():
            self.table[domains.vocabulary.item_rows([item])[0]] = score
        self.table[0] = 0.0
        self.supports = []

    def adapt(self, support):
        self.supports.append(support)
        return len(support.length)

    def score(self, tasks, item):
        rows = np.asarray(item["item_id"])
        return np.broadcast_to(self.table[rows], (tasks, *rows.shape[-1:]))


def means(table, learner, k):
    chosen = table.summary.filter((pl.col("learner") == learner) & (pl.col("K") == k))
    return dict(zip(chosen["metric"], chosen["mean"], strict=True))


def test_a_list_is_ranked_over_the_target_alone():
    domains = Domains.of(interactions(SOURCE, "implicit"), interactions(TARGET, "implicit"))
    held_out = interactions([(3, 21, 1.0), (3, 22, 1.0)], "implicit")
    own = Recording(domains, {10: 9.0, 11: 9.0, 20: 1.0, 21: 3.0, 22: 2.0})  # 10 and 11 are of the source alone.
    table = cross_domain({"own": own}, domains, held_out, shots=(0, 3), top_k=1, floors=False)
    for k in (0, 3):
        assert means(table, "own", k) == {"recall@1": 0.5, "ndcg@1": 1.0, "hit_rate@1": 1.0, "mrr@1": 1.0}
    assert table.notes[0] == "1 users, judged by 2 interactions with 3 items."


def test_ratings_are_clipped_to_the_range_of_the_target():
    source = interactions([(1, 10, 0.0), (2, 10, 9.0)], "explicit")
    domains = Domains.of(source, interactions(TARGET, "explicit"))
    own = Recording(domains, {20: 8.0})
    found = cross_domain({"own": own}, domains, interactions([(3, 20, 4.0)], "explicit"), shots=(1,), floors=False)
    assert means(found, "own", 1) == {"mae": 1.0, "rmse": 1.0}


def test_ratings_are_judged_over_what_each_user_rated_clipped_to_the_range():
    domains = Domains.of(interactions(SOURCE, "explicit"), interactions(TARGET, "explicit"))
    held_out = interactions([(3, 20, 4.0), (3, 21, 2.0), (4, 22, 5.0)], "explicit")
    own = Recording(domains, {20: 3.0, 21: 5.0, 22: 9.0})
    table = cross_domain({"own": own}, domains, held_out, shots=(2,), floors=False)
    per_user = {user: (mae, rmse) for user, mae, rmse in table.per_user.select("user_id", "mae", "rmse").rows()}
    assert per_user[3] == pytest.approx((2.0, 5**0.5))  # 1 and 3 apart.
    assert per_user[4] == (0.0, 0.0)  # 9 is clipped to 5.


def test_the_absolute_error_is_that_of_the_median_where_there_is_one():
    domains = Domains.of(interactions(SOURCE, "explicit"), interactions(TARGET, "explicit"))
    own = Recording(domains, {20: 3.0, 21: 5.0, 22: 4.0})
    own.median = lambda state, item: own.score(state, item) + 1
    held_out = interactions([(3, 20, 4.0)], "explicit")
    assert means(cross_domain({"own": own}, domains, held_out, shots=(2,), floors=False), "own", 2) == {
        "mae": 0.0,
        "rmse": 1.0,
    }


def test_support_is_the_last_of_the_source_and_nothing_at_k_0(domains):
    held_out = interactions([(3, 21, 2.0)], domains.feedback)
    own = Recording(domains, {20: 3.0, 21: 2.0, 22: 1.0})
    cross_domain({"own": own}, domains, held_out, shots=(0, 2, 9), top_k=1, floors=False)
    nothing, two, everything = own.supports
    assert nothing.length.tolist() == [0]
    assert not nothing.label.any()
    assert not nothing.item["item_id"].any()
    ids = domains.vocabulary.item_ids
    assert ids[two.item["item_id"][0]].tolist() == [10, 20]
    assert ids[everything.item["item_id"][0]].tolist() == [11, 10, 20]


def test_floors_of_both_domains_stand_in_the_table(domains):
    held_out = interactions([(3, 21, 2.0), (3, 22, 4.0)], domains.feedback)
    own = Recording(domains, {20: 3.0, 21: 2.0, 22: 1.0})
    table = cross_domain({"own": own}, domains, held_out, shots=(0, 2), top_k=2)
    fitted = tmr.evaluation.fitted_floors(domains.joint, domains.vocabulary)
    assert list(table.summary["learner"].unique(maintain_order=True)) == [*fitted, "own"]
    assert np.isfinite(table.summary["mean"].to_numpy()).all()


def test_scores_that_cannot_be_judged_are_refused(domains):
    held_out = interactions([(3, 21, 2.0)], domains.feedback)
    own = Recording(domains, {20: 3.0})
    with pytest.raises(ValueError, match=r"'own' at K=0 must give finite scores. Received: NaN or infinity"):
        cross_domain({"own": own}, domains, held_out, shots=(0,), top_k=1, floors=False)
    with pytest.raises(ValueError, match="`recommenders` must hold at least one"):
        cross_domain({}, domains, held_out, floors=False)
    with pytest.raises(ValueError, match="`shots` must be different"):
        cross_domain({"own": own}, domains, held_out, shots=(1, 1))
