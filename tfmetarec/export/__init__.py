"""SavedModels that TensorFlow Serving loads, and that adapt inside one request."""

from tfmetarec.export.clusters import TwoStage
from tfmetarec.export.deployment import check_serving_config, write_serving_config
from tfmetarec.export.errors import GateError
from tfmetarec.export.holdout import Holdout
from tfmetarec.export.lite import LiteModel, lite_model
from tfmetarec.export.publishing import retired_versions, rollback, versions
from tfmetarec.export.saved_model import Export, saved_model
from tfmetarec.export.signatures import ServedLearner

__all__ = [
    "Export",
    "GateError",
    "Holdout",
    "LiteModel",
    "ServedLearner",
    "TwoStage",
    "check_serving_config",
    "lite_model",
    "retired_versions",
    "rollback",
    "saved_model",
    "versions",
    "write_serving_config",
]
