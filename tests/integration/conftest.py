"""Shared by the end-to-end tests."""

from collections.abc import Callable

import pytest


@pytest.fixture
def serving() -> Callable:
    """`tfmetarec.quickstart.serving`: a real server process, stopped at the end."""
    from tfmetarec.quickstart import serving

    return serving
