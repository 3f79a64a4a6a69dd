"""What a call raises when there is no result."""


class ServingError(Exception):
    """What the server answered instead of a result, or why there was no answer.

    Args:
        code: str. A gRPC status code such as `"NOT_FOUND"`, also for REST.
        message: str. The server's own words.

    Example:
    >>> print(ServingError("NOT_FOUND", "Could not find any versions of model m"))
    NOT_FOUND: Could not find any versions of model m
    """

    def __init__(self, code: str, message: str):
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
