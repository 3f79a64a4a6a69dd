"""Requests that adapt: what searching a large catalogue costs, and what a client waits for.

`search` adapts a two-tower model on 20 interactions (two steps) and returns the best 100 of a million items in 64
dimensions, in the TF1 session that TensorFlow Serving has too. Its yardstick `bare` is nothing but the product of one
query with all item vectors and `tf.math.top_k`, on the same table in the same process, in interleaved turns. The item
vectors lie in clusters, half of their variance within; a second table asks for as much recall where there are none.

`requests` asks `tfmetarec serve`, a process of its own, over one connection of each protocol. Its yardstick is the
un-adapted request; the model is the one of the target: an MLP of three layers of 64 that takes five steps on 20 rows
before it scores 100 candidates.

The columns: `p50`, `p95` and `p99` in milliseconds; `ratio` to the yardstick of the same turn, the median over
turns, between `lowest_ratio` and `highest_ratio`.
"""

import http.client
import json
import multiprocessing
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf
from rich.console import Console
from rich.progress import track

import tfmetarec as tmr
from benchmarks import report
from tfmetarec.export import Holdout, ServedLearner, TwoStage, saved_model
from tfmetarec.export.example_requests import example_request

NAME = "serving"
SEARCHES = {"in clusters": "two", "not in clusters": "none"}
BARE, EXACT, TWO_STAGE = "bare", "adapt_and_recommend", "adapt_and_recommend, two-stage"
TOP_K, SUPPORT, CANDIDATES, DIMENSIONS = 100, 20, 100, 64
RECALL = 0.95
SERVED = {"inner_steps": 5, "inner_learning_rate": 0.05}
PROTOCOLS = ("gRPC", "REST")
UNADAPTED, ADAPTED = "serving_default", "adapt_and_score"


# -- a large catalogue ----------------------------------------------------------------------------------------------


def large_learner(items: int, clusters: int, spread: float) -> tuple[tmr.meta.MAML, Holdout]:
    """A two-tower learner over so many items, and users who each bought from a few clusters.

    Args:
        items: int.
        clusters: int.
        spread: standard deviation of an item about its cluster's centre; the centres' own is 1.
    """
    rng = np.random.default_rng(0)
    each = 20
    met = pl.DataFrame({"user_id": np.arange(items) // each, "item_id": rng.permutation(items), "label": 1.0})
    purchases = tmr.data.Interactions.from_frames(met, feedback="implicit", name="large")
    vocabulary = tmr.data.Vocabulary.fit(purchases)
    # An item's bias and the user's own level are the last two of the dimensions.
    model = tmr.models.TwoTower(vocabulary, DIMENSIONS - 2)
    learner = tmr.meta.MAML(model, inner_steps=2, inner_learning_rate=0.5, shrinkage=5.0)
    centres = rng.normal(size=(clusters, DIMENSIONS - 2))
    own = rng.integers(0, clusters, items + 1)
    vectors = centres[own] + spread * rng.normal(size=(items + 1, DIMENSIONS - 2))
    vectors *= 0.3 / (1 + spread**2) ** 0.5
    model.item_encoder.id_vector.embeddings.assign(vectors.astype(np.float32))
    by_cluster = np.argsort(own[1:], kind="stable")
    starts = np.searchsorted(own[1:][by_cluster], np.arange(clusters + 1))
    users = []
    for user in range(128):
        chosen = rng.choice(clusters, 3, replace=False)
        bought = [rng.choice(by_cluster[starts[c] : starts[c + 1]], 7) for c in chosen]
        bought = np.unique(np.concatenate(bought))[:SUPPORT]
        users.append(pl.DataFrame({"user_id": user, "item_id": vocabulary.item_ids[1:][bought], "label": 1.0}))
    held_out = tmr.data.Interactions.from_frames(pl.concat(users), feedback="implicit", name="large")
    return learner, Holdout(held_out, shots=(SUPPORT,), query=1)


def export_large(base: Path, items: int, clusters: int, spread: float, two_stage: bool) -> tuple[Path | None, str]:
    """Exports such a learner; in a process of its own, so that its memory is given back."""
    learner, holdout = large_learner(items, clusters, spread)
    search = TwoStage(RECALL, clusters) if two_stage else None
    export = saved_model(learner, base, top_k=TOP_K, search=search, holdout=holdout)
    request = example_request(
        ServedLearner(learner, TOP_K), "adapt_and_recommend", batch=1, support=SUPPORT, candidates=1, seed=0
    )
    # Users like those that the recall was measured on: their purchases lie together.
    table = holdout.interactions.table
    request["support"] = np.resize(table.filter(user_id=0)["item_id"].to_numpy(), (1, SUPPORT))
    np.savez(base / "request.npz", **request)  # type: ignore[arg-type]
    return export.path, export.search


def apart(function: Callable, *arguments: Any) -> Any:
    """The result of a function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def session_call(path: Path, request: dict[str, np.ndarray], bare: bool = False) -> list[Callable[[], Any]]:
    """`adapt_and_recommend` of an export in a TF1 session, and with `bare` its yardstick in the same session."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(path))
        signature = meta.signature_def["adapt_and_recommend"]
        names = list(signature.inputs)
        run = session.make_callable(
            [info.name for info in signature.outputs.values()], [signature.inputs[name].name for name in names]
        )
        values = [request[name] for name in names]
        calls = [lambda: run(*values)]
        if bare:
            size = json.loads((path / "assets.extra" / "tfmetarec.json").read_text())["items"]
            shapes = {op: op.get_attr("shape") for op in session.graph.get_operations() if op.type == "VarHandleOp"}
            handle = next(
                op.outputs[0] for op, shape in shapes.items() if [d.size for d in shape.dim] == [size, DIMENSIONS]
            )
            query = tf.compat.v1.placeholder(tf.float32, [1, DIMENSIONS])
            table = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
            products = tf.matmul(query, table, transpose_b=True)
            alone = session.make_callable(list(tf.math.top_k(products, TOP_K)), [query])
            one = np.random.default_rng(0).normal(size=(1, DIMENSIONS)).astype(np.float32)
            calls.insert(0, lambda: alone(one))
    return calls


def measure_search(
    items: int, clusters: int, turns: int, quick: bool, console: Console
) -> tuple[report.Rows, report.Rows, list]:
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        cases = [("exact", 1.0, False), ("two", 1.0, True), *([] if quick else [("none", 1000.0, True)])]
        for name, spread, two_stage in track(cases, "exporting", console=console, transient=True):
            found[name] = apart(export_large, Path(scratch) / name, items, clusters, spread, two_stage)
        with np.load(Path(scratch) / "two" / "request.npz") as recorded:
            request = {name: recorded[name] for name in recorded.files}
        paths = {name: path for name, (path, _) in found.items()}
        calls = dict(zip((BARE, EXACT), session_call(paths["exact"], request, bare=True), strict=True))
        calls[TWO_STAGE] = session_call(paths["two"], request)[0]
        rows = _timed(calls, BARE, turns, per_turn=5, console=console)
    searches = [
        {"vectors": name, "search": "\n".join(textwrap.wrap(found[key][1], 90))}
        for name, key in SEARCHES.items()
        if key in found
    ]
    is_two_stage = found["two"][1].startswith("two stages")
    recall = float(found["two"][1].split(f"recall@{TOP_K} ")[1].split()[0]) if is_two_stage else 0.0
    by_name = {row["request"]: row for row in rows}
    targets = [
        report.Target("exact search to the bare product", by_name[EXACT]["ratio"], "at most", 1.25),
        report.Target("two-stage search to the bare product", by_name[TWO_STAGE]["ratio"], "at most", 0.25),
        report.Target("recall of the two-stage search", recall, "at least", RECALL),
    ]
    return rows, searches, targets


# -- requests to a server ---------------------------------------------------------------------------------------------


def served_learner() -> tmr.meta.MAML:
    """The model of the target: an MLP of three layers of 64 on ratings."""
    ratings = tmr.data.load("synthetic", n_users=300, n_items=500, feedback="explicit", seed=0)
    model = tmr.models.Ranker(tmr.data.Vocabulary.fit(ratings), hidden=(64, 64, 64))
    return tmr.meta.MAML(model, **SERVED)


def grpc_call(port: int, model: str, signature: str, inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return lambda: predict(request, timeout=30)


def rest_call(port: int, model: str, signature: str, inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"signature_name": signature, "inputs": {k: v.tolist() for k, v in inputs.items()}})

    def call() -> None:
        connection.request("POST", f"/v1/models/{model}:predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{signature} answered {answer.status}: {text[:200]!r}")

    return call


def measure_requests(turns: int, per_turn: int, console: Console) -> tuple[report.Rows, list[report.Target]]:
    from tfmetarec.quickstart import serving

    with tempfile.TemporaryDirectory() as scratch:
        learner = served_learner()
        base = Path(scratch) / "ranker"
        saved_model(learner, base, top_k=20)
        served = ServedLearner(learner, 20)
        requests = {
            name: example_request(served, name, batch=1, support=SUPPORT, candidates=CANDIDATES, seed=0)
            for name in served.inputs
        }
        rows: report.Rows = []
        with serving(base, "ranker", Path(scratch) / "log") as ports:
            for protocol, port, call in zip(PROTOCOLS, ports, (grpc_call, rest_call), strict=True):
                calls = {name: call(port, "ranker", name, inputs) for name, inputs in requests.items()}
                for row in _timed(calls, UNADAPTED, turns, per_turn, console):
                    rows.append({"protocol": protocol, **row})
    adapting = next(row["ratio"] for row in rows if (row["protocol"], row["request"]) == ("gRPC", ADAPTED))
    target = report.Target("adapting to the un-adapted gRPC request", adapting, "at most", 1.4)
    return rows, [target]


# -- timing ----------------------------------------------------------------------------------------------------------


def _timed(
    calls: dict[str, Callable[[], Any]], yardstick: str, turns: int, per_turn: int, console: Console
) -> report.Rows:
    """Runs the calls in turns, each so many times, and compares them with one of them within every turn."""
    for call in calls.values():
        for _ in range(5):
            call()
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in track(range(turns), "measuring", console=console, transient=True):
        for name, call in calls.items():
            times[name].append(list(_durations_ms(call, per_turn)))
    against = [median(turn) for turn in times[yardstick]]
    rows = []
    for name, measured in times.items():
        ratios = [median(turn) / base for turn, base in zip(measured, against, strict=True)]
        p50, p95, p99 = np.percentile(np.concatenate(measured), [50, 95, 99])
        rows.append(
            {
                "request": name,
                "p50": float(p50),
                "p95": float(p95),
                "p99": float(p99),
                "ratio": median(ratios),
                "lowest_ratio": min(ratios),
                "highest_ratio": max(ratios),
            }
        )
    return rows


def _durations_ms(call: Callable[[], Any], count: int) -> Iterator[float]:
    for _ in range(count):
        started = time.perf_counter()
        call()
        yield 1e3 * (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> int:
    options = report.read_options(NAME, __doc__.splitlines()[0], arguments)
    console = report.console()
    items, clusters = (5_000, 70) if options.quick else (1_000_000, 1_000)
    turns = 3 if options.quick else 31
    search, searches, targets = measure_search(items, clusters, turns, options.quick, console)
    requests, more = measure_requests(turns, 20 if options.quick else 40, console)
    config = {
        "items": items,
        "dimensions": DIMENSIONS,
        "clusters": clusters,
        "top_k": TOP_K,
        "support": SUPPORT,
        "candidates": CANDIDATES,
        "turns": turns,
        "served": SERVED,
    }
    figures = {"search": search, "how the catalogue is searched": searches, "requests": requests}
    return report.finish(options, config=config, figures=figures, targets=[*targets, *more], console=console)


if __name__ == "__main__":
    report.run(main)
