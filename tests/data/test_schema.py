import json
import re

import polars as pl
import pytest

from tfmetarec.data.errors import DataError
from tfmetarec.data.schema import Feature, Schema

USER, ITEM = Feature("user_id", "id"), Feature("item_id", "id")


def test_each_column_type_has_its_kind():
    items = pl.DataFrame(
        {
            "item_id": [1],
            "words": ["a"],
            "code": [3],
            "is_new": [True],
            "price": [1.5],
            "tags": [["a", "b"]],
            "codes": [[1, 2]],
            "embedding": [[0.1, 0.2]],
        }
    ).with_columns(
        enum=pl.lit("x", pl.Enum(["x"])),
        categorical=pl.lit("x", pl.Categorical),
        fixed=pl.lit([0.5], pl.Array(pl.Float32, 1)),
    )
    schema = Schema.infer(None, items, "implicit")
    assert {feature.name: feature.kind for feature in schema.item} == {
        "item_id": "id",
        "words": "category",
        "code": "category",
        "is_new": "category",
        "price": "number",
        "tags": "category_list",
        "codes": "category_list",
        "embedding": "vector",
        "enum": "category",
        "categorical": "category",
        "fixed": "vector",
    }
    assert schema.user == (USER,)


def test_the_id_comes_first_wherever_its_column_stands():
    items = pl.DataFrame({"price": [1.0], "item_id": [1]})
    assert Schema.infer(None, items, "implicit").item == (ITEM, Feature("price", "number"))


def test_kinds_overrule_the_type_of_a_column():
    users = pl.DataFrame({"user_id": [1], "age": [30]})
    assert Schema.infer(users, None, "implicit", {"age": "number"}).user[1].kind == "number"


def test_a_name_that_both_sides_have_can_be_told_apart():
    users = pl.DataFrame({"user_id": [1], "age": [30]})
    items = pl.DataFrame({"item_id": [1], "age": [30]})
    schema = Schema.infer(users, items, "implicit", {"item.age": "number"})
    assert (schema.user[1].kind, schema.item[1].kind) == ("category", "number")


def test_the_item_name_is_text_unless_said_otherwise():
    items = pl.DataFrame({"item_id": [1], "title": ["A"]})
    assert Schema.infer(None, items, "implicit", item_name="title").item[1].kind == "text"
    kinds = {"title": "category"}
    assert Schema.infer(None, items, "implicit", kinds, item_name="title").item[1].kind == "category"


def test_a_schema_survives_json():
    schema = Schema(
        (USER, Feature("zip", "category"), Feature("age", "number")),
        (ITEM, Feature("title", "text")),
        "explicit",
        "title",
    )
    written = json.dumps(schema.to_dict(), sort_keys=True)
    assert Schema.from_dict(json.loads(written)) == schema


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Feature("brand", "categorie"), "the nearest name is 'category'. Received: kind='categorie'"),
        (lambda: Feature("", "text"), "`name` must be a non-empty string. Received: name=''"),
        (lambda: Schema((USER,), (ITEM,), "ratings"), "`feedback` must be 'explicit' or 'implicit'"),
        (lambda: Schema((), (ITEM,), "implicit"), "`user` must begin with user_id"),
        (lambda: Schema((USER,), (Feature("price", "number"), ITEM), "implicit"), "must begin with item_id"),
        (lambda: Schema((USER,), (ITEM, Feature("sku", "id")), "implicit"), "its only feature of kind 'id'"),
        (
            lambda: Schema((USER,), (ITEM, Feature("a", "text"), Feature("a", "text")), "implicit"),
            "`item` must name each feature once. Received twice: ['a']",
        ),
        (
            lambda: Schema((USER,), (ITEM, Feature("title", "text")), "implicit", "titel"),
            "`item_name` must be an item feature; the nearest name is 'title'. Received: item_name='titel'",
        ),
        (lambda: Schema.from_dict({"user": []}), "`config` must have the keys"),
        (
            lambda: Schema.infer(None, pl.DataFrame({"item_id": [1], "price": [1]}), "implicit", {"prise": "number"}),
            "`kinds` must name features that exist; the nearest name is 'price'. Received: 'prise'",
        ),
        (
            lambda: Schema.infer(None, pl.DataFrame({"item_id": [1], "at": [None]}), "implicit"),
            "Feature 'at' has the type Null, which fits no kind",
        ),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(DataError, match=re.escape(message)):
        make()
