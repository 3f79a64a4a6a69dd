"""What an export can fail with."""


class GateError(RuntimeError):
    """An export that would not serve as the live model does; nothing was published."""
