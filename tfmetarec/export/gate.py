"""The gate: an export is published only if a clean process answers as the live model does."""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tfmetarec.export.errors import GateError
from tfmetarec.export.example_requests import Request, example_request
from tfmetarec.export.legality import check_legal
from tfmetarec.export.live import LiveLearner
from tfmetarec.export.signatures import ServedLearner

SHAPES = ({"batch": 1, "support": 3, "candidates": 5}, {"batch": 4, "support": 20, "candidates": 50})
TOLERANCE = 1e-4


def check(folder: Path, served: ServedLearner) -> dict[str, float]:
    """Compares a written SavedModel with the live learner on every signature: two shapes, batched and row by row.

    Args:
        folder: the SavedModel, not yet published.
        served: what it was made from.

    Returns:
        The largest absolute difference per signature.

    Raises:
        GateError: if it holds what TensorFlow Serving refuses, does not load, does not run, or answers otherwise.
    """
    check_legal(folder)
    live = LiveLearner(served)
    cases: dict[str, Request] = {}
    behind: dict[str, Request] = {}
    for signature, inputs in served.inputs.items():
        for number, request in enumerate(_requests(served, live, signature)):
            case = f"{signature}/{number}"
            cases[case], behind[case] = {name: request[name] for name in inputs}, request
    differences = dict.fromkeys(served.inputs, 0.0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(_run_apart, folder, cases)
        expected_of = {}
        if served.catalogue.is_exact:
            for case, request in cases.items():
                expected_of[case] = live.answer(case.split("/")[0], request, behind=behind[case])
        answers = running.result()
    for case, request in cases.items():
        signature = case.split("/")[0]
        found = {key.rsplit("/", 1)[1]: value for key, value in answers.items() if key.startswith(f"{case}/")}
        expected = expected_of.get(case)
        if expected is None:
            expected = live.answer(signature, request, found if "items" in found else None, behind[case])
        _compare(case, found, expected, len(next(iter(request.values()))))
        difference = max(_apart(found[name], value) for name, value in expected.items() if value.dtype.kind == "f")
        differences[signature] = max(differences[signature], difference)
    return differences


def _requests(served: ServedLearner, live: LiveLearner, signature: str) -> list[Request]:
    """Requests of two shapes, and rows of the larger one alone; with states, the supports behind them too."""
    requests = []
    for number, shape in enumerate(SHAPES):
        request = example_request(served, signature, seed=number, **shape)
        if "state" in request:
            request |= (supports := example_request(served, "adapt", seed=number, **shape))
            request["state"] = live.answer("adapt", supports)["state"]
            if len(request["state"]) > 1:
                request["state"][-1, 0] += 1.0  # As if another version had written it.
        requests.append(request)
    # The first row has a full support, the last one none, and a state of another version.
    return requests + [{name: value[[row]] for name, value in requests[-1].items()} for row in (0, -1)]


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
        if name == "contributions":  # Differences of scores, as exact as these; of an item that ties, another's.
            size = np.maximum(1.0, np.abs(np.where(np.isfinite(expected["scores"]), expected["scores"], 0.0)))
            got = np.where((found["items"] == expected["items"])[:, :, None], got, value) / size[:, :, None]
            value = value / size[:, :, None]
        if value.dtype.kind == "f" and not np.allclose(got, value, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            raise GateError(
                f"{case} answers {name!r} differently from the live model: up to {_apart(got, value):.2g} apart."
            )
    if "items" in expected:
        _compare_items(case, found, expected)


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference: 0 between equal infinities, infinite where only one side is finite."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    apart = np.where(same, 0.0, np.inf)
    np.subtract(found, expected, out=apart, where=np.isfinite(found) & np.isfinite(expected))
    return float(np.max(np.abs(apart), initial=0.0))


def _compare_items(case: str, found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    """Ids must agree except where their scores tie."""
    # Places that no item was left for have the score -inf, whose difference from itself would be NaN.
    scores = np.nan_to_num(np.maximum(expected["scores"], -1e30), nan=-1e30)
    apart = np.abs(np.diff(scores, axis=1)) > TOLERANCE * np.maximum(1, np.abs(scores[:, 1:]))
    # Clear of the neighbour on both sides; the last place may tie with the first one not shown.
    clear = np.pad(apart, ((0, 0), (1, 0)), constant_values=True) & np.pad(
        apart, ((0, 0), (0, 1)), constant_values=False
    )
    wrong = (found["items"] != expected["items"]) & clear & np.isfinite(expected["scores"])
    if wrong.any():
        raise GateError(f"{case} recommends other items than the live model in {int(wrong.sum())} places.")
    if (np.diff(scores, axis=1) > TOLERANCE * np.maximum(1, np.abs(scores[:, 1:]))).any():
        raise GateError(f"{case} recommends items that are not in the order of their scores.")
