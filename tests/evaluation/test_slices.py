"""Groups and their figures, worked out by hand."""

import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.evaluation.slices import Gap, fairness_gap, item_groups, slices, user_groups, worst


def shop(users=30):
    """User u met the items 1..1 + u // 10; item 1 by all, item 2 by twenty, item 3 by ten."""
    rows = [(user, item) for user in range(users) for item in range(1, 2 + user // 10)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    people = pl.DataFrame(
        {
            "user_id": range(users),
            "age": ["old"] * 15 + ["young"] * (users - 15),
            "same": ["x"] * users,
            "height": [float(user * 1.1) for user in range(users)],
            "name": [f"n{user}" for user in range(users)],
        }
    )
    items = pl.DataFrame(
        {"item_id": [1, 2, 3], "title": ["a", "b", "c"], "brand": ["A", "A", "B"], "tags": [["x", "y"], ["x"], ["y"]]}
    )
    return tmr.data.Interactions.from_frames(table, users=people, items=items, feedback="implicit", item_name="title")


def test_users_are_grouped_by_activity_and_by_features_with_more_than_one_group():
    groups = user_groups(shop())
    sizes = groups.group_by("feature", "group", maintain_order=True).len()
    found = {f: dict(part.select("group", "len").iter_rows()) for (f,), part in sizes.group_by("feature")}
    assert found["activity"] == {"1 interactions": 10, "2 interactions": 10, "3 interactions": 10}
    assert found["age"] == {"old": 15, "young": 15}
    assert "same" not in found
    many = user_groups(shop(60))
    assert set(many["feature"]) == {"activity", "age"}  # Of sixty values are only numbers and names.


def test_only_the_users_asked_for_are_grouped_and_all_alike_are_no_group():
    few = user_groups(shop(), users=pl.Series([1, 2, 20]))
    assert few.filter(pl.col("feature") == "activity")["group"].to_list() == ["1 interactions"] * 2 + ["3 interactions"]
    alike = user_groups(shop(), users=pl.Series(range(10)))
    assert "activity" not in alike["feature"]
    assert user_groups(shop(), users=pl.Series([3])).is_empty()


def test_groups_are_in_the_order_of_numbers_and_whole_ones_have_no_fraction():
    data = shop()
    people = pl.DataFrame(
        {
            "user_id": range(30),
            "kids": [float(user % 3 + 9) for user in range(30)],
            "income": [["5-9K", "10-14K", "Under 5K"][user % 3] for user in range(30)],
            "half": [0.5 * (user % 2) for user in range(30)],
        }
    )
    groups = user_groups(tmr.data.Interactions.from_frames(data.table, users=people, feedback="implicit"))
    of = {f: part["group"].unique(maintain_order=True).to_list() for (f,), part in groups.group_by("feature")}
    assert of["kids"] == ["9", "10", "11"]
    assert of["income"] == ["5-9K", "10-14K", "Under 5K"]
    assert of["half"] == ["0.0", "0.5"]


def test_a_feature_called_like_groups_of_ours_is_told_apart():
    data = shop()
    people = data.users.select("user_id", activity="age")
    items = pl.DataFrame({"item_id": [1, 2, 3], "popularity": [1.5, 1.5, 2.0]})
    named = tmr.data.Interactions.from_frames(data.table, users=people, items=items, feedback="implicit")
    groups = user_groups(named)
    assert set(groups["feature"]) == {"activity", "activity (feature)"}
    assert set(groups.filter(pl.col("feature") == "activity (feature)")["group"]) == {"old", "young"}
    assert set(item_groups(tmr.data.Vocabulary.fit(named), named)["feature"]) == {
        "popularity",
        "popularity (feature)",
    }


def test_items_are_grouped_by_popularity_category_and_each_entry_of_a_list():
    data = shop()
    groups = item_groups(tmr.data.Vocabulary.fit(data), data, popularity=2)
    found = {(f, g): sorted(part["item_id"].to_list()) for (f, g), part in groups.group_by("feature", "group")}
    assert found == {
        ("popularity", "10 to 20 users"): [2, 3],
        ("popularity", "30 users"): [1],
        ("brand", "A"): [1, 2],
        ("brand", "B"): [3],
        ("tags", "x"): [1, 2],
        ("tags", "y"): [1, 3],
    }


def values(**learners):
    return pl.concat(
        [
            pl.DataFrame({"user_id": np.arange(len(value)), "learner": name, "value": np.asarray(value, float)})
            for name, value in learners.items()
        ]
    )


GROUPS = pl.DataFrame({"user_id": range(30), "feature": "age", "group": ["old"] * 10 + ["young"] * 15 + ["rare"] * 5})


def test_each_group_has_its_mean_and_difference_and_small_ones_are_counted():
    mine, floor = [0.4] * 5 + [0.6] * 5 + [0.9] * 20, [0.5] * 30
    found, few = slices(values(mine=mine, floor=floor), GROUPS, against="floor")
    assert few == 1
    rows = {(row["learner"], row["group"]): row for row in found.iter_rows(named=True)}
    assert rows["mine", "old"]["users"] == 10
    assert rows["mine", "old"]["mean"] == pytest.approx(0.5)
    assert rows["mine", "old"]["difference_low"] < 0 < rows["mine", "old"]["difference_high"]
    assert rows["mine", "young"]["difference"] == pytest.approx(0.4)
    assert worst(found, "mine")["group"] == "old"
    assert worst(found, "mine", lower_is_better=True)["group"] == "young"
    assert slices(values(mine=mine[:3]), GROUPS)[0].is_empty()
    equal, _ = slices(values(mine=[0.5] * 30), GROUPS)
    assert worst(equal, "mine")["group"] == "young"  # It has more users.


def test_of_items_each_user_counts_once():
    pairs = pl.DataFrame(
        {
            "user_id": [0, 0, 0, *range(1, 11)],
            "item_id": [1, 2, 3, *[1] * 10],
            "learner": "mine",
            "value": [1.0, 1.0, 0.0, *[0.0] * 10],
        }
    )
    groups = pl.DataFrame({"item_id": [1, 2, 3], "feature": "brand", "group": ["A", "A", "B"]})
    found, few = slices(pairs, groups)
    assert few == 1  # Of brand B one user was asked.
    assert found.row(0, named=True)["mean"] == pytest.approx(1 / 11)


def test_the_gap_is_between_the_furthest_groups_and_its_p_value_knows_they_were_chosen():
    generator = np.random.default_rng(0)
    groups = pl.DataFrame({"user_id": range(90), "feature": "f", "group": ["a", "b", "c"] * 30})
    value = np.tile([0.1, 0.2, 0.6], 30) + 0.01 * generator.normal(size=90)
    (gap,) = fairness_gap(pl.DataFrame({"user_id": range(90), "value": value}), groups)
    assert (gap.best, gap.worst) == ("c", "a")
    assert gap.gap == pytest.approx(value[2::3].mean() - value[::3].mean())
    assert gap.low < gap.gap < gap.high
    assert gap.p_value == pytest.approx(1 / 1001)
    (error,) = fairness_gap(pl.DataFrame({"user_id": range(90), "value": value}), groups, lower_is_better=True)
    assert (error.best, error.worst) == ("a", "c")


def test_groups_of_chance_are_seldom_called_a_gap():
    generator = np.random.default_rng(1)
    found = []
    for seed in range(100):
        groups = pl.DataFrame(
            {"user_id": range(100), "feature": "f", "group": generator.permutation(["a", "b", "c", "d"] * 25)}
        )
        frame = pl.DataFrame({"user_id": range(100), "value": generator.normal(size=100)})
        found.append(fairness_gap(frame, groups, samples=200, seed=seed)[0].p_value)
    assert np.mean(np.array(found) < 0.05) < 0.12


def test_one_group_has_no_gap():
    frame = pl.DataFrame({"user_id": range(30), "value": np.arange(30.0)})
    assert [gap.feature for gap in fairness_gap(frame, GROUPS)] == ["age"]
    assert fairness_gap(frame, GROUPS.filter(pl.col("group") != "old")) == []
    assert isinstance(fairness_gap(frame, GROUPS)[0], Gap)


def test_who_has_no_group_is_in_none():
    missing = GROUPS.with_columns(group=pl.when(pl.col("group") != "young").then("group"))
    frame = values(mine=np.arange(30.0))
    assert slices(frame, missing)[0]["group"].to_list() == ["old"]
    assert fairness_gap(frame, missing) == []


def test_groups_that_are_equal_are_two_all_the_same():
    (gap,) = fairness_gap(values(mine=np.ones(30)), GROUPS)
    assert (gap.gap, gap.p_value) == (0, 1)
    assert gap.best != gap.worst


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: slices(values(a=[1.0] * 30), GROUPS, against="b"),
            "`against` must be one of the learners, a. Received: against='b'",
        ),
        (
            lambda: slices(values(a=[1.0] * 30).drop("learner"), GROUPS),
            r"`values` must have a column 'learner'. Received the columns \['user_id', 'value'\]",
        ),
        (lambda: slices(values(a=[1.0]), GROUPS.drop("group")), "`groups` must have a column 'group'"),
        (
            lambda: fairness_gap(values(a=[np.nan] + [1.0] * 29), GROUPS),
            "`values` must be finite. Received: 1 values that are not",
        ),
        (lambda: fairness_gap(values(a=[1.0] * 30, b=[2.0] * 30), GROUPS), "`values` must have one row for each user"),
        (
            lambda: fairness_gap(values(a=[1.0] * 30), GROUPS, confidence=95),
            "`confidence` must be between 0 and 1. Received: confidence=95",
        ),
    ],
)
def test_what_cannot_be_grouped_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
