"""tfmetarec: TensorFlow recommenders that adapt to a new user inside the request.

`import tfmetarec as tmr`, then `tmr.data`, `tmr.tasks`, `tmr.models`, `tmr.optimizers`, `tmr.meta`, `tmr.transfer`,
`tmr.evaluation`, `tmr.export`, `tmr.tuning`, `tmr.server`, `tmr.client`, `tmr.experiment` and `tmr.crossing`. Each is
imported when it is first used, so that `tfmetarec --help` does not wait for TensorFlow.
"""

import importlib
import os
import sys
from importlib.metadata import version as _version
from types import ModuleType

__version__ = _version("tfmetarec")
__all__ = [
    "client",
    "crossing",
    "data",
    "evaluation",
    "experiment",
    "export",
    "meta",
    "models",
    "optimizers",
    "server",
    "tasks",
    "transfer",
    "tuning",
]


def _use_legacy_keras() -> None:
    """Lets TFRS load: it needs `tf.keras` to be tf_keras, which TensorFlow decides once, at its first use.

    Keras 3 (`import keras`) is not affected.
    """
    loader = getattr(sys.modules.get("tensorflow"), "keras", None)
    known = vars(loader) if loader is not None else {}
    # Until its first use `tf.keras` is a lazy loader (asking that for an attribute would be the first use), and
    # from then on the module that it found.
    resolved = known.get("_tfll_keras_version") if "_tfll_name" in known else known.get("__name__")
    if resolved is not None and not resolved.startswith("tf_keras"):
        raise ImportError(
            "`tf.keras` has already been used as Keras 3, and TensorFlow Recommenders needs it to be tf_keras. "
            "Import tfmetarec before anything that uses `tf.keras`, or set the environment variable "
            "TF_USE_LEGACY_KERAS=1 before starting Python."
        )
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets with pages of device notices.


_use_legacy_keras()


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"tfmetarec.{name}")
    raise AttributeError(f"module 'tfmetarec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
