import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).with_name("searching.py")


@pytest.fixture(scope="session")
def searching() -> ModuleType:
    """The search that tests share."""
    spec = importlib.util.spec_from_file_location("searching", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
