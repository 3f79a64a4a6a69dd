import dataclasses
import re
import subprocess
import sys

import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tfmetarec.data.errors import DataError
from tfmetarec.data.interactions import Interactions


def purchases(**changes):
    """Three users, three items, times out of order; item 30 and user 3 have no features."""
    columns = {
        "user_id": [2, 1, 1, 3, 1],
        "item_id": [10, 20, 10, 30, 30],
        "label": [1.0, 2.0, 3.0, 4.0, 5.0],
        "timestamp": [50, 30, 10, 20, 30],
    }
    columns = {**columns, **changes}
    return pl.DataFrame({name: values for name, values in columns.items() if values is not None})


USERS = pl.DataFrame({"user_id": [1, 2, 9], "age": [30, None, 40]})
ITEMS = pl.DataFrame(
    {
        "item_id": [10, 20],
        "title": ["Ten", "Twenty"],
        "tags": [["a", "b"], []],
        "vector": [[0.5, 1.0], [2.0, 3.0]],
        "price": [1.5, float("nan")],
    }
)


def full():
    return Interactions.from_frames(
        purchases(),
        USERS,
        ITEMS,
        feedback="explicit",
        kinds={"age": "number"},
        item_name="title",
        name="shop",
    )


def test_rows_stand_in_each_users_order_of_time_and_ties_keep_their_order():
    table = full().table
    assert table.select("user_id", "item_id", "timestamp").rows() == [
        (1, 10, 10),
        (1, 20, 30),
        (1, 30, 30),
        (2, 10, 50),
        (3, 30, 20),
    ]


def test_without_timestamps_a_user_keeps_the_order_of_the_rows():
    table = Interactions.from_frames(purchases(timestamp=None), feedback="explicit").table
    assert table.select("user_id", "item_id").rows() == [(1, 20), (1, 10), (1, 30), (2, 10), (3, 30)]


def test_columns_have_the_promised_types():
    assert dict(full().table.schema) == {
        "user_id": pl.Int64,
        "item_id": pl.Int64,
        "label": pl.Float32,
        "timestamp": pl.Int64,
    }


def test_an_implicit_label_is_one_where_none_is_given():
    assert Interactions.from_frames(purchases(label=None), feedback="implicit").table["label"].to_list() == ([1.0] * 5)


def test_pandas_and_lazy_tables_give_the_same_interactions():
    for table in (pd.DataFrame(purchases().to_dict(as_series=False)), purchases().lazy()):
        made = Interactions.from_frames(table, feedback="explicit")
        assert_frame_equal(made.table, full().table)


def test_a_pandas_feature_table_with_lists_and_missing_values_is_read():
    items = pd.DataFrame({"item_id": [10, 20], "tags": [["a"], ["b", "c"]], "year": [1999, None]})
    made = Interactions.from_frames(purchases(), items=items, feedback="explicit", kinds={"year": "category"})
    assert made.items["tags"].to_list() == [["a"], ["b", "c"]]
    assert made.items["year"].to_list() == [1999, None]


def test_counts_are_those_of_a_hand_count():
    made = full()
    assert (len(made), made.n_users, made.n_items) == (5, 3, 3)
    assert (made.users_without_features, made.items_without_features) == (1, 1)
    row = made.describe().row(0, named=True)
    assert row["density"] == pytest.approx(5 / 9)
    assert (row["first_time"].timestamp(), row["last_time"].timestamp()) == (10, 50)
    assert (row["users_without_features"], row["items_without_features"]) == (1, 1)


def test_density_counts_a_pair_once_however_many_behaviors_it_has():
    table = pl.DataFrame({"user_id": [1, 1], "item_id": [7, 7], "behavior": ["view", "buy"]})
    assert Interactions.from_frames(table, feedback="implicit").describe()["density"].item() == 1.0


def test_without_a_feature_table_no_item_has_features():
    made = Interactions.from_frames(purchases(), feedback="explicit")
    assert (made.users_without_features, made.items_without_features) == (3, 3)
    assert made.describe()["items_without_features"].item() == 3


def test_the_repr_is_one_informative_line():
    assert repr(full()) == ("Interactions('shop': 5 rows, 3 users, 3 items, explicit, 1970-01-01 to 1970-01-01)")


def test_interactions_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        full().name = "other"


def repeated(**columns):
    """User 1 met item 7 three times: last in time stands first."""
    base = {"user_id": [1, 1, 1, 1], "item_id": [7, 7, 8, 7], "label": [4.0, 1.0, 9.0, 2.0]}
    return pl.DataFrame({**base, "timestamp": [40, 10, 20, 30], **columns})


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ("first", [(7, 1.0, 10), (8, 9.0, 20)]),
        ("last", [(8, 9.0, 20), (7, 4.0, 40)]),
        ("sum", [(7, 7.0, 10), (8, 9.0, 20)]),
    ],
)
def test_duplicates_are_settled_by_time(duplicates, expected):
    made = Interactions.from_frames(repeated(), feedback="implicit", duplicates=duplicates)
    assert made.table.select("item_id", "label", "timestamp").rows() == expected


@pytest.mark.parametrize(("duplicates", "label"), [("first", 4.0), ("last", 2.0)])
def test_duplicates_without_timestamps_are_settled_by_order(duplicates, label):
    made = Interactions.from_frames(repeated().drop("timestamp"), feedback="implicit", duplicates=duplicates)
    assert made.table.filter(pl.col("item_id") == 7)["label"].to_list() == [label]


def test_the_same_pair_in_two_behaviors_or_domains_is_no_duplicate():
    for column in ("behavior", "domain"):
        table = pl.DataFrame({"user_id": [1, 1], "item_id": [7, 7], column: ["a", "b"]})
        assert len(Interactions.from_frames(table, feedback="implicit")) == 2


def test_filtering_keeps_features_and_order_and_leaves_the_original_alone():
    made = full()
    kept = made.filter(pl.col("item_id") == 30)
    assert kept.table["user_id"].to_list() == [1, 3]
    assert kept.items is made.items
    assert len(made) == 5
    mask = made.table["item_id"] == 30
    assert_frame_equal(made.filter(mask).table, kept.table)


def test_another_table_is_checked_and_sorted_too():
    made = full()
    changed = made.with_table(made.table.reverse().with_columns(label=pl.lit(2)))
    # Rows 2 and 3 have one time, so they keep the order in which they now came.
    assert changed.table["item_id"].to_list() == [10, 30, 20, 10, 30]
    assert changed.table["label"].dtype == pl.Float32
    assert changed.schema == made.schema


def test_parquet_gives_back_exactly_what_was_written(tmp_path):
    made = full()
    made.to_parquet(tmp_path / "deep" / "shop")
    read = Interactions.from_parquet(tmp_path / "deep" / "shop")
    for part in ("table", "users", "items"):
        assert_frame_equal(getattr(read, part), getattr(made, part), check_exact=True)
        assert getattr(read, part).schema == getattr(made, part).schema
    assert (read.schema, read.name) == (made.schema, made.name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["shop"]


def test_parquet_gives_back_interactions_without_features(tmp_path):
    made = Interactions.from_frames(purchases(), feedback="explicit")
    made.to_parquet(tmp_path / "shop")
    read = Interactions.from_parquet(tmp_path / "shop")
    assert read.users is None
    assert read.items is None
    assert_frame_equal(read.table, made.table)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    # A schema that JSON cannot write fails after the first tables were written.
    made = dataclasses.replace(full(), name=object())
    with pytest.raises(TypeError, match="not JSON serializable"):
        made.to_parquet(tmp_path / "shop")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_overwritten(tmp_path):
    with pytest.raises(DataError, match="`folder` must not exist yet"):
        full().to_parquet(tmp_path)


def test_a_damaged_or_foreign_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"must have been written by `to_parquet`.*nowhere"):
        Interactions.from_parquet(tmp_path / "nowhere")
    full().to_parquet(tmp_path / "shop")
    (tmp_path / "shop" / "items.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"items\.parquet cannot be read"):
        Interactions.from_parquet(tmp_path / "shop")
    (tmp_path / "shop" / "schema.json").write_text("{}")
    with pytest.raises(DataError, match=r"schema\.json is damaged"):
        Interactions.from_parquet(tmp_path / "shop")


def explicit(table, users=None, items=None, **options):
    return Interactions.from_frames(table, users, items, **{"feedback": "explicit", **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: explicit(purchases().rename({"user_id": "userId"})),
            "`table` must have the column 'user_id'; the nearest name is 'userId'. Received the columns",
        ),
        (lambda: explicit(purchases(label=None)), "`table` must have the column 'label'"),
        (
            lambda: explicit(purchases(label=None, rating=[1] * 5), feedback="implicit"),
            "rename or drop it. Received the column 'rating'",
        ),
        (
            lambda: explicit(purchases().rename({"timestamp": "timestamps"})),
            "the nearest name is 'timestamp'; rename or drop it. Received the column 'timestamps'",
        ),
        (lambda: explicit(purchases().clear()), "`table` must have rows. Received a table with the columns"),
        (lambda: explicit(purchases(), items=ITEMS.clear()), "`items` must have rows"),
        (lambda: explicit([1, 2]), "`table` must be a polars or pandas DataFrame. Received the type list"),
        (
            lambda: explicit(pd.DataFrame({"user_id": [1, "a"], "item_id": [1, 2], "label": [1, 2]})),
            "`table` must hold one type per column, which this pandas table does not",
        ),
        (lambda: explicit(purchases(user_id=[1, 2, None, 4, 5])), "`user_id` of `table` must not be null"),
        (lambda: explicit(purchases(label=[1.0] * 4 + [float("nan")])), "`label` must be a finite number"),
        (
            lambda: explicit(purchases(user_id=[1] * 5)),
            "`table` must have each user_id and item_id once; set `duplicates` to say what to do. "
            "Received 2 repeated rows, such as of user_id 1, item_id 10",
        ),
        (lambda: explicit(purchases(), duplicates="lest"), "the nearest name is 'last'"),
        (lambda: explicit(purchases(), duplicates="sum"), "must not be 'sum' for explicit feedback"),
        (lambda: explicit(purchases(), feedback="likes"), "`feedback` must be 'explicit' or 'implicit'"),
        (lambda: explicit(purchases(), name=3), "`name` must be a string. Received: name=3"),
        (
            lambda: explicit(purchases(), pl.concat([USERS, USERS])),
            "`users` must have each user_id once. Received 1 more than once, and so for 3 ids in all",
        ),
        (
            lambda: explicit(purchases(), items=ITEMS.with_columns(pl.col("item_id").cast(pl.String))),
            "`item_id` must have one type in all tables; cast one of them. "
            "Received Int64 in `table` and String in `items`",
        ),
        (
            lambda: explicit(purchases(), items=ITEMS.rename({"item_id": "sku"})),
            "`items` must have the column 'item_id'",
        ),
        (lambda: explicit(purchases(), USERS, kinds={"agee": "number"}), "the nearest name is 'age'"),
        (lambda: explicit(purchases(), item_name="title"), "`item_name` needs `items`"),
        (
            lambda: full().filter(pl.col("item_id") == 99),
            "`condition` must leave some of the 5 rows. Received: ",
        ),
        (
            lambda: full().filter(pl.Series([True])),
            "`condition` must have one value for each of the 5 rows. Received 1",
        ),
        (
            lambda: explicit(purchases().drop("user_id")),
            "`table` must have the column 'user_id'. Received the columns ['item_id', 'label', 'timestamp']",
        ),
        (lambda: explicit(purchases(), kinds=["age"]), "`kinds` must map feature names to kinds"),
        (lambda: full().filter(pl.col("sku") == 1), "cannot be applied to the columns ['user_id', 'item_id'"),
        (lambda: full().with_table(purchases(user_id=["a"] * 5, item_id=[1, 2, 3, 4, 5])), "Received String"),
        (lambda: full().with_table(purchases(user_id=[1] * 5)), "each user_id and item_id once"),
    ],
)
def test_bad_input_is_met_with_one_clear_sentence(make, message):
    with pytest.raises(DataError, match=re.escape(message)):
        make()


def test_reading_data_never_loads_tensorflow():
    modules = ["schema", "columns", "files", "interactions", "splits", "sources.synthetic"]
    lines = [
        # The package's `__init__` may offer more than its data; its modules themselves must not need it.
        "import sys, types, pathlib, importlib.util",
        "root = pathlib.Path(importlib.util.find_spec('tfmetarec').origin).parent",
        "for name in ('tfmetarec', 'tfmetarec.data'):",
        "    package = types.ModuleType(name)",
        "    package.__path__ = [str(root.parent.joinpath(*name.split('.')))]",
        "    sys.modules[name] = package",
        *(f"import tfmetarec.data.{module}" for module in modules),
        "assert 'tensorflow' not in sys.modules, 'tensorflow was loaded'",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=60)
