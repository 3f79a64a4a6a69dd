"""The canonical error codes that gRPC, REST and the log share."""

from __future__ import annotations

import tensorflow as tf

CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""Names by number, as in gRPC and TensorFlow."""

HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
"""What REST answers for a code; 500 for the codes that are not listed."""


class StatusError(Exception):
    """An error with a canonical code, as a client of either protocol sees it.

    Args:
        code: str, one of `CODES` except `"OK"`.
        message: str. What went wrong, without the code.

    Example:
    >>> print(StatusError("NOT_FOUND", "no such model"))
    NOT_FOUND: no such model
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def invalid_argument(message: str) -> StatusError:
    return StatusError("INVALID_ARGUMENT", message)


def failed_precondition(message: str) -> StatusError:
    return StatusError("FAILED_PRECONDITION", message)


def from_exception(error: BaseException) -> StatusError:
    """Gives any exception a code, so that a surprise becomes an answer and never ends the server."""
    if isinstance(error, StatusError):
        return error
    if isinstance(error, tf.errors.OpError):
        return StatusError(CODES[error.error_code], error.message)
    if isinstance(error, RecursionError):
        return StatusError("INVALID_ARGUMENT", "The request is nested too deeply.")
    if isinstance(error, UnicodeError):
        return StatusError("INVALID_ARGUMENT", "The request holds text that is not valid Unicode.")
    if isinstance(error, MemoryError):
        return StatusError("RESOURCE_EXHAUSTED", "Not enough memory for this request.")
    return StatusError("INTERNAL", f"{type(error).__name__}: {error}")
