"""The local twin of TensorFlow Serving: gRPC and REST over the same files, flags and error texts.

`python -m tfmetarec.server` takes tensorflow_model_server's flags; `Server` does the same from Python.
"""

from tfmetarec.server.batching import BatchingOptions
from tfmetarec.server.command import main
from tfmetarec.server.server import Server
from tfmetarec.server.status import StatusError

__all__ = ["BatchingOptions", "Server", "StatusError", "main"]
