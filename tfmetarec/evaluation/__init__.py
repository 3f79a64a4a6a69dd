"""Metrics, intervals, the tables of cold users in one domain and across two, and what else there is to know."""

from tfmetarec.evaluation import calibration, lists, metrics
from tfmetarec.evaluation.adaptation import adaptation_curve
from tfmetarec.evaluation.bootstrap import Difference, Interval, bootstrap_mean, paired_bootstrap
from tfmetarec.evaluation.cold_start import (
    LOWER_IS_BETTER,
    ColdStartTable,
    Recommender,
    check_metric,
    cold_start,
    fitted_floors,
    metric_names,
    ratings_of,
)
from tfmetarec.evaluation.cold_states import by_state, cold_states
from tfmetarec.evaluation.cross_domain import cross_domain
from tfmetarec.evaluation.examination import Examination, examine, user_values
from tfmetarec.evaluation.slices import Gap, fairness_gap, item_groups, slices, user_groups
from tfmetarec.evaluation.validation import ColdStartValidation, monitor_of

__all__ = [
    "LOWER_IS_BETTER",
    "ColdStartTable",
    "ColdStartValidation",
    "Difference",
    "Examination",
    "Gap",
    "Interval",
    "Recommender",
    "adaptation_curve",
    "bootstrap_mean",
    "by_state",
    "calibration",
    "check_metric",
    "cold_start",
    "cold_states",
    "cross_domain",
    "examine",
    "fairness_gap",
    "fitted_floors",
    "item_groups",
    "lists",
    "metric_names",
    "metrics",
    "monitor_of",
    "paired_bootstrap",
    "ratings_of",
    "slices",
    "user_groups",
    "user_values",
]
