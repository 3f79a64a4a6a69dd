"""A client for a served model, over REST or gRPC, for TensorFlow Serving and the local server alike.

REST needs the standard library and NumPy alone: it starts in a moment. gRPC moves large tensors faster and
loads TensorFlow first. Both give equal answers.
"""

from tfmetarec.client.answers import Explanation
from tfmetarec.client.client import Client
from tfmetarec.client.errors import ServingError
from tfmetarec.client.session import Session

__all__ = ["Client", "Explanation", "ServingError", "Session"]
