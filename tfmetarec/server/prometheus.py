"""Counters and latency histograms, written as a Prometheus page under TensorFlow Serving's names."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict

BUCKET_LIMITS = [10 * 1.8**i for i in range(33)]
"""Upper ends of the latency buckets in microseconds, about 20 minutes the last; beyond that, infinity."""
_EXAMPLE_LIMITS = [2.0**i for i in range(15)]
_SERVING = ":tensorflow:serving:"
_SAVED_MODEL = ":tensorflow:cc:saved_model:"

MAX_SERIES = 10_000
"""Of each metric. Clients choose the model's name in a request, and each new one would stay for ever."""

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
        self._histograms: dict[str, dict[Labels, _Histogram]] = defaultdict(dict)

    def _count(self, name: str, labels: Labels, amount: int = 1) -> None:
        with self._lock:
            if labels in self._counters[name] or len(self._counters[name]) < MAX_SERIES:
                self._counters[name][labels] += amount

    def _observe(self, name: str, labels: Labels, value: float, limits: list[float] = BUCKET_LIMITS) -> None:
        with self._lock:
            histograms = self._histograms[name]
            if labels not in histograms:
                histograms[labels] = _Histogram(limits)
            histograms[labels].add(value)

    def count_request(self, model: str, status: str) -> None:
        """Counts an answered request and its code."""
        self._count(f"{_SERVING}request_count", (("model_name", model), ("status", status)))

    def count_examples(self, model: str, examples: int) -> None:
        """Counts the examples of an answered classification, regression or both."""
        self._observe(f"{_SERVING}request_example_counts", (("model", model),), examples, _EXAMPLE_LIMITS)
        self._count(f"{_SERVING}request_example_count_total", (("model", model),), examples)

    def count_logged_request(self, model: str, status: str) -> None:
        """Counts a request that was to be logged, and whether it was."""
        self._count(f"{_SERVING}request_log_count", (("model_name", model), ("status_code", status)))

    def count_load(self, path: str, success: bool, seconds: float) -> None:
        """Counts a try to load a version, and how long it took."""
        status = "success" if success else "fail"
        self._count(f"{_SAVED_MODEL}load_attempt_count", (("model_path", path), ("status", status)))
        self._count(f"{_SAVED_MODEL}load_latency", (("model_path", path),), round(seconds * 1e6))

    def observe_request(self, model: str, method: str, protocol: str, seconds: float) -> None:
        """Records how long a successful request took, all in all."""
        labels = (("model_name", model), ("API", method), ("entrypoint", protocol))
        self._observe(f"{_SERVING}request_latency", labels, seconds * 1e6)

    def observe_runtime(self, model: str, method: str, seconds: float) -> None:
        """Records how long a run of the graph took, waiting for a batch included."""
        labels = (("model_name", model), ("API", method), ("runtime", "TF1"))
        self._observe(f"{_SERVING}runtime_latency", labels, seconds * 1e6)

    def observe_warmup(self, path: str, status: str, seconds: float) -> None:
        """Records how long a version's warm-up took."""
        self._observe(f"{_SERVING}model_warmup_latency", (("model_path", path), ("status", status)), seconds * 1e6)

    def page(self) -> str:
        """The page that Prometheus reads."""
        lines = []
        with self._lock:
            for name, counts in sorted(self._counters.items()):
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{{{_text(labels)}}} {count}" for labels, count in sorted(counts.items())]
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE {name} histogram")
                for labels, histogram in sorted(histograms.items()):
                    lines += histogram.lines(name, _text(labels))
        return "\n".join(lines) + "\n"


class _Histogram:
    def __init__(self, limits: list[float]):
        self._limits = limits
        self._counts = [0] * (len(limits) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        # A value that equals a limit belongs to the bucket above it, as in TensorFlow's histograms.
        self._counts[bisect_right(self._limits, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        total, lines = 0, []
        for limit, count in zip([*(f"{limit:g}" for limit in self._limits), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{labels},le="{limit}"}} {total}')
        return [*lines, f"{name}_sum{{{labels}}} {self._sum:g}", f"{name}_count{{{labels}}} {total}"]


def _text(labels: Labels) -> str:
    escape = {ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n"}
    return ",".join(f'{name}="{value.translate(escape)}"' for name, value in labels)


METRICS = Metrics()
"""Shared by all servers of this process, as TensorFlow Serving's own metrics are."""
