"""Publishing a learner as a version of a served model: whole, checked, or not at all."""

import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path

import tensorflow as tf

from tfmetarec.export import gate
from tfmetarec.export.example_requests import example_request, user_input
from tfmetarec.export.signatures import DESCRIPTIONS, ServedLearner
from tfmetarec.export.warmup import write_warmup
from tfmetarec.meta.learner import MetaLearner


@dataclass(frozen=True)
class Export:
    """A published version.

    Attributes:
        path: its folder, `PATH/VERSION`.
        version: int.
        differences: largest absolute difference from the live model, per signature.
    """

    path: Path
    version: int
    differences: dict[str, float]


def saved_model(
    learner: MetaLearner, path: str | Path, *, top_k: int = 20, warmup_batches: tuple[int, ...] = (1,)
) -> Export:
    """Writes `learner` as the next version under `path`, ready for TensorFlow Serving.

    The version is staged beside the others under a name that servers ignore, checked against the live model in
    a clean process (see `tfmetarec.export.gate`), flushed to disk and then renamed to its number: a server
    that watches `path` sees all of it or nothing.

    Signatures: `serving_default`, `adapt_and_score`, `adapt_and_recommend` and `embed_items`. Inside, under
    `assets.extra/`: warm-up requests, `tfmetarec.json` (what this is, schema, settings, versions) and the
    vocabulary with the items' names.

    Args:
        learner: `MetaLearner` over users, with a vocabulary.
        path: base path of the served model; its last part is usually the model's name.
        top_k: int, at least 1. How many items a recommendation holds.
        warmup_batches: ints. Batch sizes to warm up; a server refuses a version whose warm-up exceeds its
            `max_batch_size`. Defaults to 1.

    Raises:
        GateError: if the export does not answer as the live model does. Nothing is published then.
        ValueError: if the learner has no vocabulary, or `top_k` is out of range.
    """
    served = ServedLearner(learner, top_k)
    signatures = served.signatures()
    base = Path(path)
    base.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="writing-", dir=base))
    try:
        staging.chmod(0o755)  # `mkdtemp` keeps everybody else out, a server under another name included.
        with _quietly():
            tf.saved_model.save(served.resources(signatures), str(staging), signatures=signatures)
        requests = [
            (name, example_request(served.vocabulary, name, batch=batch, support=20, candidates=100, seed=0))
            for name in signatures
            for batch in warmup_batches
        ]
        write_warmup(staging, base.name, requests)
        served.vocabulary.save(staging / "assets.extra" / "vocabulary")
        _write_card(staging / "assets.extra" / "tfmetarec.json", learner, served)
        differences = gate.check(staging, learner, list(signatures), served.top_k)
        _flush(staging)
        version = _publish(staging, base)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Export(base / str(version), version, differences)


def versions(path: str | Path) -> list[int]:
    """Published versions under `path`, oldest first."""
    base = Path(path)
    return sorted(int(child.name) for child in base.iterdir() if child.name.isdecimal()) if base.is_dir() else []


@contextmanager
def _quietly() -> Iterator[None]:
    """Without TensorFlow's line about the assets of a folder that is about to be renamed."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _publish(staging: Path, base: Path) -> int:
    version = (versions(base) or [0])[-1] + 1
    while True:
        try:
            staging.rename(base / str(version))  # Atomic, and refused where the version exists.
        except OSError:
            if not (base / str(version)).exists():
                raise
            version += 1
        else:
            _sync(base)
            return version


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_card(path: Path, learner: MetaLearner, served: ServedLearner) -> None:
    vocabulary = served.vocabulary
    settings = {name: value for name, value in learner.get_config().items() if name != "model"}
    packages = ("tfmetarec", "tensorflow", "keras", "tensorflow-recommenders")
    card = {
        "learner": type(learner).__name__,
        "settings": settings,
        "model": type(learner.model).__name__,
        "data": vocabulary.name,
        "feedback": learner.feedback,
        "schema": vocabulary.schema.to_dict(),
        "items": vocabulary.n_items - 1,
        "label_range": vocabulary.label_range,
        "top_k": served.top_k,
        "signatures": DESCRIPTIONS,
        "user_inputs": {name: user_input(name) for name in vocabulary.raw_signature("user")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in packages}},
    }
    path.write_text(json.dumps(card, indent=1))
