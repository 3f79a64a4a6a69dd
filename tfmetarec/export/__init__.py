"""SavedModels that TensorFlow Serving loads, and that adapt inside one request."""

from tfmetarec.export.gate import GateError
from tfmetarec.export.saved_model import Export, saved_model, versions
from tfmetarec.export.signatures import ServedLearner

__all__ = ["Export", "GateError", "ServedLearner", "saved_model", "versions"]
