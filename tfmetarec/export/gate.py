"""The gate: an export is published only if a clean process answers as the live model does."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmetarec.export.example_requests import Request, example_request, user_input
from tfmetarec.meta.learner import MetaLearner
from tfmetarec.tasks.episode import Support

SHAPES = ({"batch": 1, "support": 3, "candidates": 5}, {"batch": 4, "support": 20, "candidates": 50})
TOLERANCE = 1e-4


class GateError(RuntimeError):
    """An export that would not serve as the live model does; nothing was published."""


def check(folder: Path, learner: MetaLearner, signatures: list[str], top_k: int) -> dict[str, float]:
    """Compares a written SavedModel with the live learner on every signature at two shapes.

    Args:
        folder: the SavedModel, not yet published.
        learner: what it was made from.
        signatures: names of its signatures.
        top_k: how many items it recommends.

    Returns:
        The largest absolute difference per signature.

    Raises:
        GateError: if it does not load, does not run, or answers otherwise.
    """
    assert learner.vocabulary is not None
    cases = {
        f"{signature}/{number}": example_request(learner.vocabulary, signature, seed=number, **shape)
        for signature in signatures
        for number, shape in enumerate(SHAPES)
    }
    answers = _run_apart(folder, cases)
    differences = dict.fromkeys(signatures, 0.0)
    for case, request in cases.items():
        signature = case.split("/")[0]
        found = {key.rsplit("/", 1)[1]: value for key, value in answers.items() if key.startswith(f"{case}/")}
        expected = live_answer(learner, signature, request, top_k)
        _compare(case, found, expected, len(next(iter(request.values()))))
        difference = max(_apart(found[name], value) for name, value in expected.items() if value.dtype.kind == "f")
        differences[signature] = max(differences[signature], difference)
    return differences


def live_answer(learner: MetaLearner, signature: str, request: Request, top_k: int) -> dict[str, np.ndarray]:
    """What the live learner answers to a request, through `adapt` and `score` alone."""
    vocabulary = learner.vocabulary
    assert vocabulary is not None
    catalogue = vocabulary.catalogue

    def items(raw: np.ndarray) -> dict[str, np.ndarray]:
        rows = vocabulary.item_rows(raw)
        return {name: value[rows] for name, value in catalogue.items()}

    if signature == "embed_items":
        encoded = tf.nest.flatten(learner._cut.encode_item(items(request["items"]), training=False))
        flat = [np.reshape(np.asarray(part, np.float32), (len(request["items"]), -1)) for part in encoded]
        return {"embeddings": np.concatenate(flat, axis=1)}
    batch = len(next(iter(request.values())))
    raw_user = {name: request[user_input(name)] for name in vocabulary.raw_signature("user")}
    user = vocabulary.encode("user", raw_user, batch)
    none = np.full((batch, 1), vocabulary.item_ids[0])
    support, labels = request.get("support", none), request.get("support_labels", np.ones((batch, 1), np.float32))
    length = request.get("support_length", np.zeros(batch, np.int32))
    state = learner.adapt(Support(user, items(support), labels, length))
    if signature != "adapt_and_recommend":
        return {"scores": np.asarray(learner.score(state, items(request["candidates"])))}
    scores = np.array(learner.score(state, catalogue))
    scores[:, 0] = -np.inf
    for row, (ids, count) in enumerate(zip(support, length, strict=True)):
        scores[row, vocabulary.item_rows(ids[:count])] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, : min(top_k, vocabulary.n_items - 1)]
    ids = vocabulary.item_ids[best]
    ids = ids if ids.dtype.kind == "i" else ids.astype(str)
    return {"items": ids, "scores": np.take_along_axis(scores, best, axis=1)}


def _run_apart(folder: Path, cases: dict[str, Request]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        requests, answers = Path(scratch) / "requests.npz", Path(scratch) / "answers.npz"
        arrays = {f"{case}/{name}": value for case, request in cases.items() for name, value in request.items()}
        np.savez(requests, **arrays)  # type: ignore[arg-type]
        script = Path(__file__).with_name("gate_process.py")
        command = [sys.executable, "-P", str(script), str(folder), str(requests), str(answers)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            reason = ran.stderr.strip().splitlines()[-1:] or [f"exit status {ran.returncode}"]
            raise GateError(f"the export does not run under the TF1 session loader: {reason[0]}")
        with np.load(answers) as found:
            return {key: found[key] for key in found.files}


def _compare(case: str, found: dict[str, Any], expected: dict[str, np.ndarray], batch: int) -> None:
    for name, value in expected.items():
        if name not in found:
            raise GateError(f"{case} has no output {name!r}.")
        got = found[name]
        if got.shape[:1] != (batch,) or got.shape != value.shape:
            raise GateError(f"{case} answers {name!r} with shape {got.shape} where the live model has {value.shape}.")
        if value.dtype.kind == "f" and not np.allclose(got, value, rtol=TOLERANCE, atol=TOLERANCE):
            raise GateError(
                f"{case} answers {name!r} differently from the live model: up to {_apart(got, value):.2g} apart."
            )
    if "items" in expected:
        _compare_items(case, found, expected)


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference: 0 between equal infinities, infinite where only one side is finite."""
    apart = np.where(found == expected, 0.0, np.inf)
    np.subtract(found, expected, out=apart, where=np.isfinite(found) & np.isfinite(expected))
    return float(np.max(np.abs(apart), initial=0.0))


def _compare_items(case: str, found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    """Ids must agree except where their scores tie."""
    # Places that no item was left for have the score -inf, whose difference from itself would be NaN.
    scores = np.maximum(expected["scores"], -1e30)
    apart = np.abs(np.diff(scores, axis=1)) > TOLERANCE * np.maximum(1, np.abs(scores[:, 1:]))
    # Clear of the neighbour on both sides; the last place may tie with the first one not shown.
    clear = np.pad(apart, ((0, 0), (1, 0)), constant_values=True) & np.pad(
        apart, ((0, 0), (0, 1)), constant_values=False
    )
    wrong = (found["items"] != expected["items"]) & clear & np.isfinite(expected["scores"])
    if wrong.any():
        raise GateError(f"{case} recommends other items than the live model in {int(wrong.sum())} places.")
