import re
from pathlib import Path

import polars as pl
import pytest

from tfmetarec.data.errors import DataError
from tfmetarec.data.interactions import Interactions

MAPPING = """
name: my-shop
feedback: implicit
interactions:
  path: "purchases/*.csv"
  user_id: customer
  item_id: sku
  timestamp: bought_at
  label: quantity
  separator: ";"
users: {path: customers.parquet, user_id: customer, features: {age: number, city: category}}
items:
  path: products.jsonl
  item_id: sku
  name: title
  features: {brand: category, tags: category_list, price: number}
duplicates: sum
list_separator: "|"
"""


@pytest.fixture
def shop(tmp_path):
    """A shop's files: two months of purchases, customers and products, and the mapping of them."""
    (tmp_path / "purchases").mkdir()
    (tmp_path / "purchases" / "2021-01.csv").write_text(
        "till;customer;sku;quantity;bought_at\n1;ann;0012;1;2021-01-05T10:00:00Z\n1;bob;34;2;2021-01-06\n"
    )
    (tmp_path / "purchases" / "2021-02.csv").write_text(
        "customer;sku;quantity;bought_at\nann;0012;2.5;2021-02-01 08:00:00\nann;34;1;2021-01-04\n"
    )
    pl.DataFrame({"customer": ["ann"], "age": [41], "city": ["Bern"], "phone": ["1"]}).write_parquet(
        tmp_path / "customers.parquet"
    )
    (tmp_path / "products.jsonl").write_text(
        '{"sku": "0012", "title": "Tea", "brand": "A", "tags": "hot|leaf", "price": 3}\n'
        '{"sku": "34", "title": "Cup", "brand": null, "tags": "", "price": 4.5, "stock": 7}\n'
    )
    (tmp_path / "shop.yaml").write_text(MAPPING)
    return tmp_path


def test_a_shops_files_become_interactions(shop):
    made = Interactions.from_files(shop / "shop.yaml")
    assert made.table.select("user_id", "item_id", "label").rows() == [
        ("ann", "34", 1.0),
        ("ann", "0012", 3.5),
        ("bob", "34", 2.0),
    ]
    assert made.users.rows(named=True) == [{"user_id": "ann", "age": 41.0, "city": "Bern"}]
    assert made.items.rows(named=True) == [
        {"item_id": "0012", "title": "Tea", "brand": "A", "tags": ["hot", "leaf"], "price": 3.0},
        {"item_id": "34", "title": "Cup", "brand": None, "tags": [], "price": 4.5},
    ]
    assert [(f.name, f.kind) for f in made.schema.item] == [
        ("item_id", "id"),
        ("title", "text"),
        ("brand", "category"),
        ("tags", "category_list"),
        ("price", "number"),
    ]
    assert (made.name, made.schema.item_name, made.schema.feedback) == ("my-shop", "title", "implicit")


def test_summed_duplicates_keep_the_first_time(shop):
    made = Interactions.from_files(shop / "shop.yaml")
    first = made.table.filter(pl.col("item_id") == "0012")["timestamp"].item()
    assert first == 1_609_840_800  # 2021-01-05 10:00:00 UTC


def test_the_mapping_may_be_a_dict_with_absolute_paths(shop):
    mapping = {
        "feedback": "implicit",
        "interactions": {
            "path": [str(shop / "purchases" / "2021-02.csv")],
            "user_id": "customer",
            "item_id": "sku",
            "separator": ";",
        },
    }
    made = Interactions.from_files(mapping)
    assert made.table.columns == ["user_id", "item_id", "label"]
    assert len(made) == 2


def write(folder: Path, text: str, suffix: str = "csv") -> dict:
    (folder / f"events.{suffix}").write_text(text)
    return {
        "feedback": "implicit",
        "interactions": {"path": str(folder / f"events.{suffix}"), "user_id": "u", "item_id": "i"},
    }


def test_ids_of_csv_files_are_numbers_only_where_all_are_plain_numbers(tmp_path):
    numbers = Interactions.from_files(write(tmp_path, "u,i\n1,10\n2,20\n")).table
    assert numbers.rows() == [(1, 10, 1.0), (2, 20, 1.0)]
    zeros = Interactions.from_files(write(tmp_path, "u,i\n007,10\n2,20\n")).table
    assert zeros.select("user_id", "item_id").rows() == [("007", 10), ("2", 20)]


def test_ids_of_csv_files_take_the_type_of_the_other_files(tmp_path):
    mapping = write(tmp_path, "u,i\n1,10\n")
    for ids, expected in ((["10"], pl.String), ([10], pl.Int64)):
        pl.DataFrame({"i": ids, "price": [1.0]}).write_parquet(tmp_path / "items.parquet")
        mapping["items"] = {"path": str(tmp_path / "items.parquet"), "item_id": "i"}
        made = Interactions.from_files(mapping)
        assert made.table["item_id"].dtype == expected
        assert made.items_without_features == 0


def test_number_ids_become_strings_beside_a_csv_file_with_words(tmp_path):
    mapping = write(tmp_path, "u,i\n1,10\n1,x\n")
    pl.DataFrame({"i": [10], "price": [1.0]}).write_parquet(tmp_path / "items.parquet")
    mapping["items"] = {"path": str(tmp_path / "items.parquet"), "item_id": "i"}
    assert Interactions.from_files(mapping).items_without_features == 1


def test_tabs_and_json_lines_are_read_by_their_suffix(tmp_path):
    for suffix, text in (("tsv", "u\ti\na\tb\n"), ("ndjson", '{"u": "a", "i": "b"}\n')):
        made = Interactions.from_files(write(tmp_path, text, suffix))
        assert made.table.rows() == [("a", "b", 1.0)]


def test_without_features_every_other_column_is_one(tmp_path):
    mapping = write(tmp_path, "u,i\n1,10\n")
    # The fraction comes late: a guess from the first rows alone would fail on it.
    (tmp_path / "items.csv").write_text(
        "i,price,brand\n" + "10,3,A\n" + "".join(f"{n},3,A\n" for n in range(11, 400)) + "400,3.5,B\n"
    )
    mapping["items"] = {"path": str(tmp_path / "items.csv"), "item_id": "i"}
    made = Interactions.from_files(mapping)
    assert [(f.name, f.kind) for f in made.schema.item[1:]] == [("price", "number"), ("brand", "category")]
    assert made.items["price"][-1] == 3.5


def test_a_number_kind_reads_whole_numbers_and_fractions_alike(tmp_path):
    mapping = write(tmp_path, "u,i\n1,10\n")
    (tmp_path / "items.csv").write_text("i,price\n" + "".join(f"{n},3\n" for n in range(200)) + "200,3.5\n")
    mapping["items"] = {"path": str(tmp_path / "items.csv"), "item_id": "i", "features": {"price": "number"}}
    assert Interactions.from_files(mapping).items["price"][-1] == 3.5


def test_a_category_keeps_its_leading_zeros(tmp_path):
    mapping = write(tmp_path, "u,i\n1,10\n")
    (tmp_path / "users.csv").write_text("u,zip\n1,02460\n")
    mapping["users"] = {"path": str(tmp_path / "users.csv"), "user_id": "u", "features": {"zip": "category"}}
    assert Interactions.from_files(mapping).users["zip"].item() == "02460"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("feedback:", "feedbak:", "the nearest name is 'feedback'. Received: 'feedbak'"),
        ("item_id: sku\n  timestamp", "item: sku\n  timestamp", "Received: 'item'"),
        ("  user_id: customer\n", "", "`interactions` of the mapping must have the key 'user_id'"),
        (
            "user_id: customer\n",
            "user_id: costumer\n",
            "the nearest name is 'customer'. Received the columns",
        ),
        ("purchases/*.csv", "purchase/*.csv", "Received: 'purchase/*.csv', which matches none in"),
        ("purchases/*.csv", "shop.yaml", "A data file must end in .csv, .txt, .tsv, .parquet, .jsonl, .ndjson"),
        ('path: "purchases/*.csv"', "path: 3", "`path` of `interactions` must be a path or a list of paths"),
        ('"purchases/*.csv"', '["purchases/*.csv", "customers.parquet"]', "files of one format"),
        ('separator: ";"', 'separator: "::"', "`separator` must be one character"),
        ("path: products.jsonl", "path: products.jsonl\n  separator: x", "must be left out for json lines"),
        ("label: quantity", "label: [quantity]", "`label` of `interactions` must be the name of a column"),
        ("{age: number, city: category}", "[age]", "`features` of `users` must map names to kinds"),
        ("age: number", "aeg: number", "the nearest name is 'age'. Received the columns"),
        ("age: number", "age: nummer", "the nearest name is 'number'. Received: kind='nummer'"),
        ("name: title", "name: titel", "the nearest name is 'title'. Received the columns"),
        ("duplicates: sum", "duplicates: error", "each user_id and item_id once; set `duplicates`"),
        ('list_separator: "|"', "", "`list_separator` must say what they are split by"),
        ("bought_at", "customer", "`timestamp` must be seconds since 1970, an ISO date or a datetime"),
        ("label: quantity", "label: sku_code", "2021-01.csv must have the column 'sku_code'"),
    ],
)
def test_a_mistake_in_the_mapping_is_named(shop, old, new, message):
    assert old in MAPPING
    (shop / "shop.yaml").write_text(MAPPING.replace(old, new))
    with pytest.raises(DataError, match=re.escape(message)):
        Interactions.from_files(shop / "shop.yaml")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("customers.parquet", "nonsense", "customers.parquet cannot be read: "),
        ("products.jsonl", '{"sku": ', "products.jsonl cannot be read: "),
        ("purchases/2021-02.csv", "", "2021-02.csv cannot be read: empty CSV"),
        (
            "purchases/2021-02.csv",
            "customer;sku;quantity;bought_at\nann;1;two;2020-01-01\n",
            "2021-02.csv cannot be read: could not parse `two` as dtype `f64` at column 'quantity'",
        ),
        ("purchases/2021-02.csv", "customer;sku\n1;2\n", "2021-02.csv must have the column 'quantity'"),
        ("purchases/2021-02.csv", "customer;sku;quantity;bought_at\n;2;1;2020-01-01\n", "must not be null"),
        ("shop.yaml", "a: [", "`mapping` must be YAML, but "),
        ("shop.yaml", "hello", "`mapping` must be YAML with keys such as `interactions`"),
        ("shop.yaml", "feedback: implicit\ninteractions: x.csv", "must be a section with keys"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(shop, file, content, message):
    (shop / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        Interactions.from_files(shop / "shop.yaml")


def test_a_table_with_a_header_alone_is_refused(shop):
    for file in (shop / "purchases").iterdir():
        file.write_text("customer;sku;quantity;bought_at\n")
    with pytest.raises(DataError, match="`interactions` must have rows"):
        Interactions.from_files(shop / "shop.yaml")


def test_a_mapping_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"`mapping` must be a file that can be read.*nothing\.yaml"):
        Interactions.from_files(tmp_path / "nothing.yaml")
    with pytest.raises(DataError, match=r"`mapping` must be a path or a dict\. Received the type int"):
        Interactions.from_files(3)


def test_a_feature_that_would_hide_the_id_is_refused(tmp_path):
    mapping = write(tmp_path, "u,i\n1,10\n")
    (tmp_path / "items.csv").write_text("i,item_id\n10,99\n")
    mapping["items"] = {"path": str(tmp_path / "items.csv"), "item_id": "i"}
    with pytest.raises(DataError, match="must not have a feature called 'item_id' beside the id 'i'"):
        Interactions.from_files(mapping)


# MIND: a file without a header, times of its own, and lists of what was shown, with what was clicked.
SHOWN = """
feedback: implicit
interactions:
  path: behaviors.tsv
  columns: [impression, user, time, history, shown]
  user_id: user
  timestamp: time
  time_format: "%m/%d/%Y %I:%M:%S %p"
  item_id: [history, shown]
  item_separator: " "
  label_separator: "-"
items:
  path: news.tsv
  columns: [news, category, title]
  quote: ""
  item_id: news
  name: title
  features: {category: category}
duplicates: first
"""


@pytest.fixture
def news(tmp_path):
    (tmp_path / "behaviors.tsv").write_text(
        "1\tU1\t11/11/2019 9:05:58 AM\tN3 N4\tN1-1 N2-0\n"
        "2\tU1\t11/11/2019 12:30:00 PM\tN3 N4\tN2-1 N1-1\n"
        "3\tU2\t11/11/2019 12:00:00 AM\t\tN4-0 N2-1\n"
    )
    (tmp_path / "news.tsv").write_text('N1\tsports\t"A win\nN2\tfood\tA "pie\n')
    (tmp_path / "news.yaml").write_text(SHOWN)
    return tmp_path


def test_a_cell_of_several_items_is_several_interactions(news):
    made = Interactions.from_files(news / "news.yaml")
    nine, noon, midnight = 1_573_463_158, 1_573_475_400, 1_573_430_400
    assert made.table.select("user_id", "item_id", "label", "timestamp").rows() == [
        ("U1", "N3", 1.0, nine),
        ("U1", "N4", 1.0, nine),
        ("U1", "N1", 1.0, nine),
        ("U1", "N2", 1.0, noon),
        ("U2", "N2", 1.0, midnight),
    ]
    assert made.items["title"].to_list() == ['"A win', 'A "pie']


def test_what_was_shown_and_not_clicked_is_a_label_of_explicit_feedback(news):
    mapping = SHOWN.replace("implicit", "explicit").replace("[history, shown]", "shown")
    (news / "news.yaml").write_text(mapping.replace("duplicates: first", "duplicates: last"))
    made = Interactions.from_files(news / "news.yaml").table
    assert made.select("user_id", "item_id", "label").rows() == [
        ("U1", "N2", 1.0),
        ("U1", "N1", 1.0),
        ("U2", "N4", 0.0),
        ("U2", "N2", 1.0),
    ]


# A bank's months: a column for each product, "NA" and spaces around numbers, a row for each month of a customer.
MONTHS = """
feedback: implicit
interactions:
  path: months.csv
  user_id: who
  timestamp: month
  item_columns: [ind_*_ult1]
  missing: [NA]
users:
  path: months.csv
  user_id: who
  features: {age: number, segment: category}
  missing: [NA]
  repeated: first
duplicates: first
"""


@pytest.fixture
def bank(tmp_path):
    (tmp_path / "months.csv").write_text(
        "month,who,age,segment,ind_card_ult1,ind_loan_ult1\n"
        "2015-01-28,7, 35,01 - TOP,1,0\n"
        "2015-01-28,8,  NA,,0,0\n"
        "2015-02-28,7, 36,02 - MORE,1,1\n"
        "2015-02-28,8, 50,02 - MORE,NA,1\n"
    )
    (tmp_path / "bank.yaml").write_text(MONTHS)
    return tmp_path


def test_a_column_for_each_item_is_an_interaction_where_it_is_first_set(bank):
    made = Interactions.from_files(bank / "bank.yaml")
    january, february = 1_422_403_200, 1_425_081_600
    assert made.table.select("user_id", "item_id", "timestamp").rows() == [
        (7, "ind_card_ult1", january),
        (7, "ind_loan_ult1", february),
        (8, "ind_loan_ult1", february),
    ]
    assert made.users.rows() == [(7, 35.0, "01 - TOP"), (8, None, None)]


def test_the_cells_of_a_matrix_of_ratings_are_labels_and_empty_ones_are_none(bank):
    (bank / "bank.yaml").write_text(MONTHS.replace("implicit", "explicit").replace("first", "last"))
    made = Interactions.from_files(bank / "bank.yaml").table
    assert made.select("user_id", "item_id", "label").rows() == [
        (7, "ind_card_ult1", 1.0),
        (7, "ind_loan_ult1", 1.0),
        (8, "ind_card_ult1", 0.0),
        (8, "ind_loan_ult1", 1.0),
    ]


def test_missing_values_do_not_hide_that_a_column_holds_numbers(bank):
    text = MONTHS.replace("  features: {age: number, segment: category}\n", "")
    (bank / "bank.yaml").write_text(text)
    (bank / "months.csv").write_text((bank / "months.csv").read_text().replace(" 35", " 35.5"))
    kinds = {feature.name: feature.kind for feature in Interactions.from_files(bank / "bank.yaml").schema.user}
    assert (kinds["segment"], kinds["age"]) == ("category", "number")


# A network of trust: a table of pairs, and no table of users.
TRUST = """
feedback: explicit
interactions:
  path: ratings.txt
  columns: [user, film, genre, rating]
  user_id: user
  item_id: film
  label: rating
users:
  user_id: user
  lists:
    trusts: {path: trusts.txt, columns: [from, to], user_id: from, value: to}
  counts:
    trusted_by: {path: trusts.txt, columns: [from, to], user_id: to}
items:
  path: ratings.txt
  columns: [user, film, genre, rating]
  item_id: film
  features: {genre: category}
  repeated: first
"""


@pytest.fixture
def network(tmp_path):
    (tmp_path / "ratings.txt").write_text("1,10,4,5\n2,10,4,3.5\n3,11,2,1\n")
    (tmp_path / "trusts.txt").write_text("1,2\n1,9\n2,9\n1,2\n")
    (tmp_path / "network.yaml").write_text(TRUST)
    return tmp_path


def test_a_table_of_pairs_becomes_lists_and_counts(network):
    made = Interactions.from_files(network / "network.yaml")
    assert made.table["label"].to_list() == [5.0, 3.5, 1.0]
    assert made.users.rows() == [(1, ["2", "9"], 0.0), (2, ["9"], 2.0), (9, [], 2.0)]
    assert made.items.rows() == [(10, "4"), (11, "2")]
    assert made.users_without_features == 1  # The third trusts nobody, and nobody trusts them.


def test_a_table_of_pairs_joins_the_table_of_users(network):
    (network / "users.csv").write_text("user,city\n3,Bern\n1,Rome\n")
    text = TRUST.replace("users:\n  user_id: user", "users:\n  path: users.csv\n  user_id: user")
    (network / "network.yaml").write_text(text)
    made = Interactions.from_files(network / "network.yaml")
    assert made.users.rows() == [(3, "Bern", [], 0.0), (1, "Rome", ["2", "9"], 0.0)]


@pytest.mark.parametrize(
    ("files", "old", "new", "message"),
    [
        (
            "news",
            "history, shown]\n  user",
            "history]\n  user",
            "`columns` of `interactions` must name the 5 columns of",
        ),
        ("news", "[impression, user,", "[user, user,", "must name each column once"),
        (
            "news",
            "[impression, user, time, history, shown]",
            "impression",
            "`columns` of `interactions` must be a list",
        ),
        ("news", "%m/%d/%Y", "%d.%m.%Y", "`time` must be written as `time_format`"),
        ("news", '"%m/%d/%Y %I:%M:%S %p"', "3", "`time_format` of `interactions` must be text. Received: 3"),
        ("news", "  timestamp: time\n", "", "`time_format` needs `timestamp`"),
        ("news", '  item_separator: " "\n', "", "`item_separator` must be given where `item_id` names several columns"),
        ("news", '"-"', '"N"', "what follows `label_separator` 'N' must be a number. Received: 'N1-1'"),
        ("news", '"-"', '"-"\n  label: shown', "`label` must be left out beside `label_separator`"),
        ("news", 'quote: ""', "quote: \"''\"", "`quote` must be one character, or empty"),
        ("bank", "[ind_*_ult1]", "[ind_*_ult2]", "must have columns that match 'ind_*_ult2'"),
        ("bank", "[ind_*_ult1]", "ind_*_ult1", "`item_columns` of `interactions` must be a list of names or patterns"),
        (
            "bank",
            "[ind_*_ult1]",
            "[seg*]",
            "a column of `item_columns` must hold numbers. Received: '01 - TOP' in 'segment'",
        ),
        ("bank", "  item_columns", "  item_id: who\n  item_columns", "`item_id` must be left out where `item_columns`"),
        ("bank", "  missing: [NA]\n  repeated", "  repeated", "'age'"),
        ("bank", "missing: [NA]\nusers", "missing: NA\nusers", "`missing` of `interactions` must be a list of texts"),
        (
            "bank",
            "repeated: first",
            "repeated: newest",
            "`repeated` of `users` must be first or last. Received: 'newest'",
        ),
        ("bank", "  repeated: first\n", "", "`users` must have each user_id once"),
        (
            "network",
            "user_id: from, value: to",
            "user_id: from",
            "`trusts` in `lists` of `users` must have the key 'value'",
        ),
        ("network", "value: to", "value: too", "columns ['from', 'to']"),
        ("network", "value: to", "valeu: to", "the nearest name is 'value'"),
        (
            "network",
            "trusts: {",
            "trusts: 3 #{",
            "`trusts` in `lists` of `users` must be a section with keys. Received: 3",
        ),
        ("network", "trusted_by: {", "trusts: {", "`users` must have each feature once. Received 'trusts'"),
        ("network", "  counts:", "  counts: 3 #", "while parsing"),
    ],
)
def test_a_mistake_about_a_shape_is_named(request, files, old, new, message):
    folder = request.getfixturevalue(files)
    mapping = folder / f"{files}.yaml"
    assert old in mapping.read_text()
    mapping.write_text(mapping.read_text().replace(old, new))
    with pytest.raises(DataError, match=re.escape(message)):
        Interactions.from_files(mapping)


def test_a_table_without_any_item_is_refused(tmp_path):
    (tmp_path / "wide.csv").write_text("u,a,b\n1,0,\n2,,0\n")
    (tmp_path / "listed.csv").write_text("u,i\n1,\n2, \n")
    for shape in (
        {"path": "wide.csv", "item_columns": ["a", "b"]},
        {"path": "listed.csv", "item_id": "i", "item_separator": " "},
    ):
        section = {**shape, "user_id": "u", "path": tmp_path / shape["path"]}
        with pytest.raises(
            DataError, match="`interactions` must hold items. Received: empty cells or labels of 0 alone"
        ):
            Interactions.from_files({"feedback": "implicit", "interactions": section})


def test_no_tables_of_pairs_are_no_users(tmp_path):
    mapping = write(tmp_path, '{"u": 1, "i": 2}\n', "jsonl")
    with pytest.raises(DataError, match="`users` of the mapping must have the key 'path'"):
        Interactions.from_files({**mapping, "users": {"user_id": "u", "lists": {}}})


def test_how_text_is_written_is_not_said_of_other_files(tmp_path):
    mapping = write(tmp_path, '{"u": 1, "i": 2}\n', "jsonl")
    mapping["interactions"]["columns"] = ["u", "i"]
    with pytest.raises(DataError, match="`columns` must be left out for json lines files"):
        Interactions.from_files(mapping)
