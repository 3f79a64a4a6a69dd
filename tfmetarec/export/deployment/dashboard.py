"""A Grafana dashboard for what TensorFlow Serving tells Prometheus."""

from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_MODEL = 'model_name=~"$model_name"'
_REQUESTS = f":tensorflow:serving:request_count{{{_MODEL}}}[$__rate_interval]"
_ERRORS = f':tensorflow:serving:request_count{{{_MODEL},status!="OK"}}[$__rate_interval]'
# A request that asked for something impossible is its sender's mistake; the rest is ours.
_MISTAKES = "OK|INVALID_ARGUMENT|NOT_FOUND|FAILED_PRECONDITION|OUT_OF_RANGE|UNIMPLEMENTED"
_FAULTS = f':tensorflow:serving:request_count{{{_MODEL},status!~"{_MISTAKES}"}}[$__rate_interval]'
_LOADS = ":tensorflow:cc:saved_model:load_attempt_count"


def _quantiles(metric: str, labels: str, by: str, legend: str) -> dict[str, str]:
    """Queries for p50, p95 and p99 of a histogram, in its own unit, by legend."""
    bucket = f":tensorflow:serving:{metric}_bucket{{{labels}}}[$__rate_interval]"
    return {
        f"p{round(100 * share)} {legend}": f"histogram_quantile({share}, sum by (le, {by}) (rate({bucket})))"
        for share in (0.5, 0.95, 0.99)
    }


# Title, unit, what it says, queries by legend. TensorFlow Serving measures in microseconds.
_PANELS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "Requests by status",
        "reqps",
        "Answered requests a second.",
        {"{{model_name}} {{status}}": f"sum by (model_name, status) (rate({_REQUESTS}))"},
    ),
    (
        "Error rate",
        "percentunit",
        "Share of the requests with another status than OK; and without those that were their sender's mistake.",
        {
            "{{model_name}} all": (
                f"sum by (model_name) (rate({_ERRORS})) / sum by (model_name) (rate({_REQUESTS})) "
                f"or 0 * sum by (model_name) (rate({_REQUESTS}))"
            ),
            "{{model_name}} the server's": (
                f"sum by (model_name) (rate({_FAULTS})) / sum by (model_name) (rate({_REQUESTS})) "
                f"or 0 * sum by (model_name) (rate({_REQUESTS}))"
            ),
        },
    ),
    (
        "Latency by API and entrypoint",
        "µs",
        "From a whole request to its answer, inside the server. Of requests that succeeded.",
        _quantiles("request_latency", _MODEL, "model_name, API, entrypoint", "{{model_name}} {{API}} {{entrypoint}}"),
    ),
    (
        "Latency inside the graph",
        "µs",
        "Adapting, scoring and waiting for a batch; the rest of a request's latency is reading and writing it.",
        _quantiles("runtime_latency", _MODEL, "model_name, API, runtime", "{{model_name}} {{API}} {{runtime}}"),
    ),
    (
        "Warm-up of a version",
        "µs",
        "How long the recorded requests took before a version was called available.",
        {
            "{{model_path}} {{status}}": (
                "sum by (model_path, status) (:tensorflow:serving:model_warmup_latency_sum) / "
                "sum by (model_path, status) (:tensorflow:serving:model_warmup_latency_count)"
            )
        },
    ),
    (
        "Loads of a version",
        "short",
        "A version that fails to load leaves the old one in its place, so nothing else would show it.",
        {"{{model_path}} {{status}}": f"sum by (model_path, status) ({_LOADS})"},
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it, for any data source of Prometheus and any model.

    Example:
    >>> [panel["title"] for panel in dashboard()["panels"]][0]
    'Requests by status'
    """
    return {
        "uid": "tensorflow-serving",
        "title": "TensorFlow Serving",
        "description": "Written by `tfmetarec export --serving-config`.",
        "tags": ["tensorflow-serving"],
        "schemaVersion": 41,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_choice(), _model_choice()]},
        "panels": [_panel(place, *panel) for place, panel in enumerate(_PANELS)],
    }


def _source_choice() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _model_choice() -> dict[str, Any]:
    query = "label_values(:tensorflow:serving:request_count, model_name)"
    return {
        "name": "model_name",
        "label": "Model",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "model_name"},
        "definition": query,
        "refresh": 2,  # With every change of the time range.
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(place: int, title: str, unit: str, description: str, queries: dict[str, str]) -> dict[str, Any]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (place % 2), "y": 9 * (place // 2), "w": 12, "h": 9},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(queries.items())
        ],
    }
