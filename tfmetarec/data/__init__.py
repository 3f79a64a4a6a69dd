"""Interactions in, vocabularies and splits out."""

from tfmetarec.data.errors import DataError
from tfmetarec.data.interactions import Interactions
from tfmetarec.data.schema import Feature, Schema
from tfmetarec.data.sources import available, load
from tfmetarec.data.splits import (
    Split,
    by_domain,
    by_time,
    cold_items,
    cold_users,
    every_state,
    four_states,
    published_states,
)
from tfmetarec.data.vocabulary import FeatureSpec, FeatureSpecs, Vocabulary

__all__ = [
    "DataError",
    "Feature",
    "FeatureSpec",
    "FeatureSpecs",
    "Interactions",
    "Schema",
    "Split",
    "Vocabulary",
    "available",
    "by_domain",
    "by_time",
    "cold_items",
    "cold_users",
    "every_state",
    "four_states",
    "load",
    "published_states",
]
