"""Metrics, intervals, and the tables of cold users in one domain and across two."""

from tfmetarec.evaluation import metrics
from tfmetarec.evaluation.bootstrap import Difference, Interval, bootstrap_mean, paired_bootstrap
from tfmetarec.evaluation.cold_start import ColdStartTable, Recommender, cold_start, fitted_floors
from tfmetarec.evaluation.cross_domain import cross_domain
from tfmetarec.evaluation.validation import ColdStartValidation, monitor_of

__all__ = [
    "ColdStartTable",
    "ColdStartValidation",
    "Difference",
    "Interval",
    "Recommender",
    "bootstrap_mean",
    "cold_start",
    "cross_domain",
    "fitted_floors",
    "metrics",
    "monitor_of",
    "paired_bootstrap",
]
