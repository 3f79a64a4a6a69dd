"""The texts of all deployment files, from the templates beside this module."""

import json
import math
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmetarec.export.deployment.dashboard import dashboard
from tfmetarec.export.deployment.published import Published

SERVING_IMAGE = (
    "tensorflow/serving:2.21.0"  # As the TensorFlow that exports: older servers may not know its operations.
)
PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
GRAFANA_IMAGE = "grafana/grafana:12.1.1"
DASHBOARD = "grafana/dashboards/tensorflow-serving.json"
BATCH_SIZES = (1, 8, 32)
"""Where single requests are all that was warmed up: batches of one would only refuse requests for several users."""
READY_PATH = "/v1/models/{name}/labels/stable/metadata"

_HERE = Path(__file__).parent
_MIB = 1024 * 1024
_PLACEHOLDER = re.compile(r"^( *)<<([a-z_]+)>>$|<<([a-z_]+)>>", re.M)
_FLAGS = """\
- --port=8500
- --rest_api_port=8501
- --model_config_file=/config/models.config
- --model_config_file_poll_wait_seconds=10
# When a server starts nothing is loaded yet, and without this every label would be refused then.
- --allow_version_labels_for_unavailable_models=true
- --enable_batching=true
- --batching_parameters_file=/config/batching.config
- --monitoring_config_file=/config/monitoring.config"""


def texts(published: Published, name: str, mount: str, models_source: str) -> dict[str, str]:
    """Every file's text by its path.

    Args:
        published: what is to be served.
        name: the model's name in requests.
        mount: absolute path at which servers see the folder that holds the base path.
        models_source: the same folder from where the files will be, for docker compose.
    """
    values = _values(published, name, mount) | {"models_source": json.dumps(models_source.replace("$", "$$"))}
    templates = _HERE / "templates"
    paths = {str(path.relative_to(templates)).removesuffix(".template"): path for path in templates.rglob("*.template")}
    written = {path: _fill(template.read_text(), values) for path, template in sorted(paths.items())}
    return written | {DASHBOARD: json.dumps(dashboard(), indent=2) + "\n"}


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Puts values in the places of `<<name>>`; one that has a line to itself keeps that line's indentation."""

    def value(match: re.Match[str]) -> str:
        return textwrap.indent(values[match[2]], match[1]) if match[2] else values[match[3]]

    return _PLACEHOLDER.sub(value, text)


def _part(name: str, values: Mapping[str, str]) -> str:
    return _fill((_HERE / "parts" / f"{name}.template").read_text(), values).rstrip("\n")


def _values(published: Published, name: str, mount: str) -> dict[str, str]:
    kubernetes_name = "serving-" + re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    canary = published.canary or published.stable
    values = {
        "name": name,
        "kubernetes_name": kubernetes_name,
        "folder": published.folder,
        "mount": mount,
        "base_path": json.dumps(f"{mount}/{published.folder}", ensure_ascii=False)[1:-1],
        "serving_image": SERVING_IMAGE,
        "prometheus_image": PROMETHEUS_IMAGE,
        "grafana_image": GRAFANA_IMAGE,
        "server_flags": _FLAGS,
        "ready_path": READY_PATH.format(name=name),
        # While versions change places two are in memory, besides TensorFlow itself.
        "memory": f"{_rounded_up(512 * _MIB + 3 * published.size_bytes, 256 * _MIB)}Mi",
        "storage": f"{_rounded_up(10 * published.size_bytes, 1024 * _MIB)}Mi",
        "canary_version": str(canary),
        "canary_replicas": "0" if published.canary is None else "1",
        "canary_note": "Without a canary there are no such pods, as now: `replicas: 0`."
        if published.canary is None
        else "`replicas: 0` ends it at once.",
        **_batching(published.batches),
        **_client(published),
    }
    main = _labels(published.loaded, {"stable": published.stable, "canary": published.canary})
    share = _labels((canary,), {"stable": canary})
    for track, labels in (("stable", main), ("canary", share)):
        config_map = kubernetes_name if track == "stable" else f"{kubernetes_name}-canary"
        own = values | labels | {"track": track, "config_map": config_map}
        for file in ("models", "batching", "monitoring"):
            template = (_HERE / "templates" / f"{file}.config.template").read_text()
            own[f"{file}_config"] = re.sub("^ *#.*\n", "", _fill(template, own), flags=re.M).rstrip("\n")
        values |= {f"pod_{track}": _part("pod.yaml", own), f"config_map_{track}": _part("config-map.yaml", own)}
    return values | main


def _rounded_up(size: int, step: int) -> int:
    return math.ceil(size / step) * step // _MIB


def _labels(versions: tuple[int, ...], labels: Mapping[str, int | None]) -> dict[str, str]:
    lines = [f'version_labels {{ key: "{label}" value: {n} }}' for label, n in labels.items() if n is not None]
    return {"versions": "\n".join(f"versions: {version}" for version in versions), "labels": "\n".join(lines)}


def _batching(warm: tuple[int, ...]) -> dict[str, str]:
    sizes = warm if warm[-1] > 1 else BATCH_SIZES
    reason = (
        "Batches are filled up to one of these sizes, which are those that were warmed up."
        if sizes == warm
        else f"Batches are filled up to one of these sizes. Only single requests were warmed up, so the first batch of "
        f"{sizes[1]} or {sizes[2]} is slow; an export with warmup_batches={sizes} would not be."
    )
    return {
        "sizes_reason": textwrap.fill(reason, 118, subsequent_indent="# "),
        "max_batch_size": str(sizes[-1]),
        "allowed_batch_sizes": "\n".join(f"allowed_batch_sizes: {size}" for size in sizes),
    }


def _client(published: Published) -> dict[str, str]:
    inputs = published.inputs
    python = {name: _literal(value, 'float("nan")') for name, (value, _) in inputs.items()}
    plain = {name: _literal(value, "NaN") for name, (value, _) in inputs.items()}
    return {
        "inputs_python": "\n".join(f'"{name}": {value},' for name, value in python.items()),
        "inputs_grpc": "\n".join(f'"{name}": ({value}, tf.{inputs[name][1]}),' for name, value in python.items()),
        "inputs_json": ",\n".join(f'"{name}": {value}' for name, value in plain.items()),
        "no_id": '""' if inputs["support"][1] == "string" else "0",
        "label_of_each": "its rating" if published.feedback == "explicit" else "the label 1",
    }


def _literal(value: Any, nan: str) -> str:
    """JSON text, which is Python and JavaScript too, but for `nan`."""
    if isinstance(value, list):
        return f"[{', '.join(_literal(entry, nan) for entry in value)}]"
    return nan if isinstance(value, float) and math.isnan(value) else json.dumps(value, ensure_ascii=False)


def models_source(base: Path, folder: Path) -> str:
    """Where the folder that holds `base` is, seen from `folder`, in the form that docker compose takes."""
    path = os.path.relpath(base.resolve().parent, folder.resolve())
    return path if path.startswith("..") else f"./{path}"
