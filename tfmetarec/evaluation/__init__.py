"""Metrics, intervals, and the cold-start table."""

from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.bootstrap import Difference, Interval, bootstrap_mean, paired_bootstrap
from tfmetarec.evaluation.cold_start import ColdStartTable, Recommender, cold_start, fitted_floors
from tfmetarec.evaluation.validation import ColdStartValidation

__all__ = [
    "ColdStartTable",
    "ColdStartValidation",
    "Difference",
    "Interval",
    "Recommender",
    "bootstrap_mean",
    "cold_start",
    "fitted_floors",
    "metrics",
    "paired_bootstrap",
]
