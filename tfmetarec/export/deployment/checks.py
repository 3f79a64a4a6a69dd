"""Whether a folder of deployment files holds together, before a server finds out."""

import itertools
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from google.protobuf import text_format

from tfmetarec.export.deployment.messages import parse

_NEEDED = {
    "models.config": "ModelServerConfig",
    "batching.config": "BatchingParameters",
    "monitoring.config": "MonitoringConfig",
}
_TLS = ("ssl.config.example", "tls/ssl.config")
_COMPOSE, _SCRAPE = "docker-compose.yaml", "prometheus/prometheus.yml"


def check_serving_config(folder: str | Path) -> None:
    """Checks deployment files, also after you have edited them, without a server.

    A server answers a wrong file at its start or, worse, refuses every change from then on. So: every file parses;
    labels point to versions that are listed; batch sizes keep TensorFlow Serving's rules; Prometheus looks where the
    metrics are; docker compose mounts what exists; Kubernetes has the same configuration as the files.

    Args:
        folder: what `write_serving_config` wrote.

    Raises:
        ValueError: naming the file and the first rule that it breaks.

    Example:
    >>> check_serving_config("serving")  # doctest: +SKIP
    """
    root = Path(folder)
    configs = {file: _message(file, _read(root, file), message) for file, message in _NEEDED.items()}
    _check_models("models.config", configs["models.config"])
    _check_batching("batching.config", configs["batching.config"])
    metrics = configs["monitoring.config"].prometheus_config
    if not (metrics.enable and metrics.path.startswith("/")):
        _refuse("monitoring.config", "must set prometheus_config with `enable: true` and a `path` that begins with /")
    for file in _TLS:
        if (root / file).exists():
            _message(file, _read(root, file), "SSLConfig")
    _check_compose(root, configs["models.config"])
    with _form(_SCRAPE):
        jobs = _documents(root, _SCRAPE)[0]["scrape_configs"]
        if not any(job.get("metrics_path") == metrics.path for job in jobs):
            _refuse(_SCRAPE, f"must have a job with the `metrics_path` of monitoring.config, {metrics.path}")
    for file in _files(root, "grafana/provisioning/*/*.yaml"):
        _documents(root, file)
    for file in _files(root, "kubernetes/*.yaml"):
        with _form(file):
            for manifest in _documents(root, file):
                _check_manifest(file, manifest, configs)
    for file in _files(root, "grafana/dashboards/*.json"):
        with _form(file):
            queries = [t["expr"] for panel in json.loads(_read(root, file))["panels"] for t in panel["targets"]]
            if not all(queries):
                _refuse(file, "must not have an empty query")


class _BrokenRuleError(ValueError):
    pass


def _refuse(file: str, rule: str) -> NoReturn:
    raise _BrokenRuleError(f"{file} {rule}.")


@contextmanager
def _form(file: str) -> Iterator[None]:
    """Turns what goes wrong in a file of another form into one sentence."""
    try:
        yield
    except _BrokenRuleError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        _refuse(file, f"has not the form that its reader expects ({type(error).__name__}: {error})")


def _files(root: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob(pattern))


def _read(root: Path, file: str) -> str:
    try:
        return (root / file).read_text()
    except OSError as error:
        _refuse(file, f"cannot be read: {error.strerror}")


def _message(file: str, text: str, message: str) -> Any:
    try:
        return parse(text, message)
    except text_format.ParseError as error:
        _refuse(file, f"must be the text of a {message}: {error}")


def _documents(root: Path, file: str) -> list[Any]:
    try:
        return list(yaml.safe_load_all(_read(root, file)))
    except yaml.YAMLError as error:
        _refuse(file, f"must be YAML: {' '.join(str(error).split())}")


def _check_models(file: str, config: Any) -> None:
    models = config.model_config_list.config
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        _refuse(file, f"must list models, each once. Received: {names}")
    for model in models:
        if model.model_platform != "tensorflow":
            _refuse(file, f'must say `model_platform: "tensorflow"` for {model.name}')
        if not posixpath.isabs(model.base_path) and "://" not in model.base_path:
            _refuse(file, f"must have an absolute base_path for {model.name}. Received: {model.base_path!r}")
        listed = set(model.model_version_policy.specific.versions)
        unlisted = {label: n for label, n in model.version_labels.items() if n not in listed}
        if model.model_version_policy.HasField("specific") and unlisted:
            _refuse(file, f"must give labels only to the versions listed for {model.name}. Received: {unlisted}")


def _check_batching(file: str, batching: Any) -> None:
    sizes = list(batching.allowed_batch_sizes)
    if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
        _refuse(file, f"must have ascending allowed_batch_sizes. Received: {sizes}")
    if sizes and sizes[-1] != batching.max_batch_size.value:
        largest = batching.max_batch_size.value
        _refuse(file, f"must end allowed_batch_sizes with max_batch_size. Received: {sizes} and {largest}")


def _check_compose(root: Path, config: Any) -> None:
    models = {posixpath.dirname(model.base_path) for model in config.model_config_list.config}
    with _form(_COMPOSE):
        for name, service in _documents(root, _COMPOSE)[0]["services"].items():
            if service.get("image", "").rpartition(":")[2] in ("", "latest", service.get("image")):
                _refuse(_COMPOSE, f"must name a version of the image of {name}. Received: {service.get('image')}")
            for mounted in service.get("volumes", ()):
                if not isinstance(mounted, dict) or mounted["type"] != "bind" or mounted["target"] in models:
                    continue  # The models may be on another machine than these files.
                if not (root / mounted["source"]).exists():
                    _refuse(_COMPOSE, f"mounts {mounted['source']} in {name}, which does not exist")


def _check_manifest(file: str, manifest: dict[str, Any], configs: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    if not (manifest["apiVersion"] and manifest["kind"] == "ConfigMap"):
        return
    held = {key: _message(f"{file}, {key}", manifest["data"][key], _NEEDED[key]) for key in _NEEDED}
    _check_models(f"{file}, models.config", held["models.config"])
    # The canary's pods are there to call another version stable.
    for key in held.keys() - ({"models.config"} if name.endswith("-canary") else set()):
        if held[key] != configs[key]:
            _refuse(file, f"must hold the same {key} as the file of that name; ConfigMap {name} does not")
