"""Counters and latency histograms, written as a Prometheus page under TensorFlow Serving's names."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict

BUCKET_LIMITS = [10 * 1.8**i for i in range(32)]
"""Upper ends of the latency buckets in microseconds, about 20 minutes the last; beyond that, infinity."""

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What one process has served. Safe to use from many threads.

    Example:
    >>> metrics = Metrics()
    >>> metrics.count_request("journey", "OK")
    >>> print(metrics.page(), end="")
    # TYPE :tensorflow:serving:request_count counter
    :tensorflow:serving:request_count{model_name="journey",status="OK"} 1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, int]] = defaultdict(lambda: defaultdict(int))
        self._histograms: dict[str, dict[Labels, list[float]]] = defaultdict(
            lambda: defaultdict(lambda: [0.0] * (len(BUCKET_LIMITS) + 2))
        )

    def _count(self, name: str, labels: Labels) -> None:
        with self._lock:
            self._counters[name][labels] += 1

    def _observe(self, name: str, labels: Labels, seconds: float) -> None:
        microseconds = seconds * 1e6
        with self._lock:
            histogram = self._histograms[name][labels]
            histogram[bisect_left(BUCKET_LIMITS, microseconds)] += 1
            histogram[-1] += microseconds

    def count_request(self, model: str, status: str) -> None:
        """Counts an answered request and its code."""
        self._count("request_count", (("model_name", model), ("status", status)))

    def observe_request(self, model: str, method: str, protocol: str, seconds: float) -> None:
        """Records how long a successful request took, all in all."""
        labels = (("model_name", model), ("API", method), ("entrypoint", protocol))
        self._observe("request_latency", labels, seconds)

    def observe_runtime(self, model: str, seconds: float) -> None:
        """Records how long a run of the graph took."""
        labels = (("model_name", model), ("API", "Predict"), ("runtime", "TF1"))
        self._observe("runtime_latency", labels, seconds)

    def observe_warmup(self, path: str, status: str, seconds: float) -> None:
        """Records how long a version's warm-up took."""
        self._observe("model_warmup_latency", (("model_path", path), ("status", status)), seconds)

    def page(self) -> str:
        """The page that Prometheus reads."""
        lines = []
        with self._lock:
            for name, counts in sorted(self._counters.items()):
                lines.append(f"# TYPE :tensorflow:serving:{name} counter")
                lines += [f":tensorflow:serving:{name}{{{_text(k)}}} {n}" for k, n in sorted(counts.items())]
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE :tensorflow:serving:{name} histogram")
                for labels, histogram in sorted(histograms.items()):
                    lines += _histogram_lines(f":tensorflow:serving:{name}", _text(labels), histogram)
        return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: str, histogram: list[float]) -> list[str]:
    total, lines = 0, []
    for limit, count in zip([*(f"{limit:g}" for limit in BUCKET_LIMITS), "+Inf"], histogram, strict=False):
        total += int(count)
        lines.append(f'{name}_bucket{{{labels},le="{limit}"}} {total}')
    return [*lines, f"{name}_sum{{{labels}}} {histogram[-1]:g}", f"{name}_count{{{labels}}} {total}"]


def _text(labels: Labels) -> str:
    escape = {ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n"}
    return ",".join(f'{name}="{value.translate(escape)}"' for name, value in labels)


METRICS = Metrics()
"""Shared by all servers of this process, as TensorFlow Serving's own metrics are."""
