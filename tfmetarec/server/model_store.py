"""The models being served: versions, states and labels, kept in step with configuration and file system.

A new version is loaded before an old one is let go, and an old one is closed only when its last request has
been answered. A version that cannot be loaded leaves the good ones alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tensorflow_serving.apis import get_model_status_pb2, model_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfmetarec.server import config
from tfmetarec.server.request_log import RequestLogs
from tfmetarec.server.servable import Servable
from tfmetarec.server.status import CODES, StatusError, failed_precondition, from_exception, invalid_argument
from tfmetarec.server.version_paths import ModelConfig, missing_variables, wanted_versions

_LOG = logging.getLogger(__name__)

Load = Callable[[str, int, Path], Servable]
"""Model name, version and directory -> the loaded, warmed-up version."""


@dataclass
class _Version:
    state: str = "START"  # As in ModelVersionStatus: START, LOADING, AVAILABLE, UNLOADING, END.
    error: StatusError | None = None
    wanted: bool = False
    incomplete: bool = False
    servable: Servable | None = None
    requests: int = 0


@dataclass
class _Model:
    versions: dict[int, _Version] = field(default_factory=dict)

    def available(self) -> list[int]:
        return [number for number, version in self.versions.items() if version.state == "AVAILABLE"]


class ModelStore:
    """Loads, finds and unloads versions.

    Args:
        load: what loads one version.
        allow_version_labels: bool. Whether labels may be used at all. Defaults to `True`.
        allow_labels_for_unavailable: bool. Whether a new label may point to a version that is not loaded.
        load_retries: int, at least 0. How often a failed load is tried again.
        load_retry_wait_s: float. Seconds between those tries.

    Attributes:
        request_logs: `RequestLogs`. What takes down answered requests, as the configuration says.
    """

    def __init__(
        self,
        load: Load,
        *,
        allow_version_labels: bool = True,
        allow_labels_for_unavailable: bool = False,
        load_retries: int = 0,
        load_retry_wait_s: float = 60.0,
    ):
        self._load = load
        self._allow_version_labels = allow_version_labels
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._load_retries = load_retries
        self._load_retry_wait_s = load_retry_wait_s
        self.request_logs = RequestLogs()
        self._config = model_server_config_pb2.ModelServerConfig()
        self._started = False
        self._serving: dict[str, ModelConfig] = {}
        self._models: dict[str, _Model] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._last_problem: dict[str, str] = {}
        self._changed = threading.Condition()
        self._reconciling = threading.Lock()
        self._reloading = threading.Lock()
        self._closing = threading.Event()
        self._unloading: list[threading.Thread] = []

    # Configuration.

    def reload(
        self,
        server_config: model_server_config_pb2.ModelServerConfig,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Serves exactly the models of `server_config`; waits until new ones are available.

        Args:
            server_config: message with a `model_config_list`.
            is_wanted: asked while waiting; once it answers `False` (the caller has gone), waiting ends.

        Raises:
            StatusError: if the configuration breaks a rule, a new model cannot be loaded or a label points to
                a version that is not available.
        """
        with self._reloading:
            if server_config.WhichOneof("config") != "model_config_list":
                raise invalid_argument(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported"
                )
            models = server_config.model_config_list
            config.check_models(models)
            config.check_platforms(self._config.model_config_list, models)
            # Kept before the next check, as TensorFlow Serving does: a rejected platform stays behind and
            # makes later reloads fail until a restart. Better to meet that here than in production.
            self._config.CopyFrom(server_config)
            # Before anything is loaded, as in TensorFlow Serving too: a label cannot come with its version, except
            # where labels may wait.
            self._labels = self._checked_labels()
            config.check_supported(models)
            kind = "model(s)" if self._started else "servable(s)"
            new = {model.name for model in models.config} - self._serving.keys()
            self._serving = {model.name: model for model in self._config.model_config_list.config}
            self._wait_for(new, is_wanted, kind)
            self._started = True
            self.request_logs.update(models.config)

    def _wait_for(self, names: set[str], is_wanted: Callable[[], bool], kind: str) -> None:
        while True:
            self.reconcile()
            with self._changed:
                failed, waiting = {}, False
                for name in sorted(names):
                    model = self._models.get(name, _Model())
                    errors = {number: v.error for number, v in model.versions.items() if v.wanted and v.error}
                    if errors:
                        failed.update({(name, number): error for number, error in errors.items()})
                    elif not model.available():
                        waiting = True
                if failed:
                    details = "".join(
                        f"{{{{name: {name} version: {number}}} due to error: {error}}}, "
                        for (name, number), error in failed.items()
                    )
                    raise StatusError("UNKNOWN", f"{len(failed)} {kind} did not become available: {{{details}}}")
            if not waiting:
                return
            if self._closing.wait(0.2) or not is_wanted():
                missing = [name for name in sorted(names) if not self._models.get(name, _Model()).available()]
                problems = [self._last_problem.get(name, "is not loaded") for name in missing]
                raise StatusError("CANCELLED", f"Gave up waiting for models: {'; '.join(problems)}")

    def _checked_labels(self) -> dict[str, dict[str, int]]:
        labels: dict[str, dict[str, int]] = {}
        for model in self._config.model_config_list.config:
            available = self._models.get(model.name, _Model()).available()
            for label, version in model.version_labels.items():
                current = self._labels.get(model.name, {}).get(label, version)
                may_wait = self._allow_labels_for_unavailable and current == version
                if version not in available and not may_wait:
                    raise failed_precondition(
                        f"Request to assign label to version {version} of model {model.name}, which is not "
                        "currently available for inference"
                    )
                labels.setdefault(model.name, {})[label] = version
        if labels and not self._allow_version_labels:
            raise failed_precondition("Model version labels are not currently allowed by the server.")
        return labels

    # Versions.

    def reconcile(self) -> None:
        """Looks at the file system once and loads and unloads what has changed."""
        with self._reconciling:
            for name in list(self._models.keys() - self._serving.keys()):
                self._aspire(name, {})
            for name, model in list(self._serving.items()):
                if self._closing.is_set():
                    return
                try:
                    wanted = wanted_versions(model)
                except StatusError as error:  # Perhaps a file system that is away for a moment: keep serving.
                    self._tell_once(name, error.message)
                    continue
                if wanted:
                    self._last_problem.pop(name, None)
                else:
                    self._tell_once(
                        name,
                        f"No versions of servable {name} found under base path {model.base_path}. "
                        "Did you forget to name your leaf directory as a number (eg. '/1/')?",
                    )
                self._aspire(name, wanted)

    def _tell_once(self, name: str, problem: str) -> None:
        if self._last_problem.get(name) != problem:
            _LOG.warning("%s", problem)
        self._last_problem[name] = problem

    def _aspire(self, name: str, wanted: dict[int, Path]) -> None:
        with self._changed:
            model = self._models.setdefault(name, _Model())
            to_load = []
            for number in sorted(wanted):
                version = model.versions.setdefault(number, _Version())
                # A version that failed is tried again only after it was taken away and put back.
                if version.state in ("START", "END") and (not version.wanted or version.incomplete):
                    to_load.append(number)
            for number, version in model.versions.items():
                # One that is still being unloaded is not touched now; the next look loads it again.
                version.wanted = number in wanted and version.state != "UNLOADING"
        for number in to_load:
            self._load_version(name, number, model.versions[number], wanted[number])
        with self._changed:
            available = model.available()
            # While no wanted version works, an old one is better than none.
            if wanted and not any(model.versions[number].wanted for number in available):
                return
            to_unload = [number for number in available if not model.versions[number].wanted]
            for number in to_unload:
                model.versions[number].state = "UNLOADING"  # From here on no request can find it.
        self._unloading = [thread for thread in self._unloading if thread.is_alive()]
        for number in to_unload:  # Its requests may take long; nothing else should wait for them.
            unloading = threading.Thread(target=self._unload, args=(name, number, model.versions[number]), daemon=True)
            unloading.start()
            self._unloading.append(unloading)

    def _load_version(self, name: str, number: int, version: _Version, path: Path) -> None:
        incomplete = missing_variables(path)
        if incomplete:
            if not version.incomplete:
                _LOG.warning("Did not load %s version %d: %s", name, number, incomplete.message)
            version.incomplete = True
            self._set(version, "END", incomplete)
            return
        version.incomplete = False
        self._set(version, "LOADING")
        started = time.perf_counter()
        for attempt in range(self._load_retries + 1):
            try:
                servable = self._load(name, number, path)
            except Exception as error:
                failure = from_exception(error)
                _LOG.error("Could not load %s version %d from %s: %s", name, number, path, failure)
                if attempt == self._load_retries or self._closing.wait(self._load_retry_wait_s):
                    self._set(version, "END", failure)
                    return
            else:
                break
        version.servable = servable
        self._set(version, "AVAILABLE")
        _LOG.info("Loaded %s version %d in %.2f s", name, number, time.perf_counter() - started)

    def _unload(self, name: str, number: int, version: _Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: version.requests == 0)
            servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        self._set(version, "END")
        _LOG.info("Unloaded %s version %d", name, number)

    def _set(self, version: _Version, state: str, error: StatusError | None = None) -> None:
        with self._changed:
            version.state, version.error = state, error
            self._changed.notify_all()

    def stop_waiting(self) -> None:
        """Ends any wait for models that have not appeared; for a server that is told to stop."""
        self._closing.set()

    def close(self, timeout_s: float | None = None) -> bool:
        """Unloads everything, after the requests under way.

        Args:
            timeout_s: float. Seconds to wait for them; `None` for as long as they take. Defaults to `None`.

        Returns:
            Whether everything is unloaded.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        self._closing.set()
        with self._reconciling:
            for name in list(self._models):
                self._aspire(name, {})
            for thread in self._unloading:
                thread.join(None if end is None else max(0.0, end - time.monotonic()))
            self.request_logs.close()
            return not any(thread.is_alive() for thread in self._unloading)

    # Requests.

    @contextlib.contextmanager
    def use(self, spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        """Finds the version that `spec` asks for and keeps it loaded for the time of a `with` block.

        Args:
            spec: ModelSpec with a name and perhaps a version or a label. Without, the newest version answers.

        Raises:
            StatusError: NOT_FOUND for a model or version that is not loaded, INVALID_ARGUMENT for a label
                that was not assigned or a missing name.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        with self._changed:
            model = self._models.get(spec.name, _Model())
            available = model.available()
            if choice == "version_label":
                labels = self._labels.get(spec.name, {})
                if spec.version_label not in labels:
                    raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
                number = labels[spec.version_label]
            elif choice == "version":
                number = spec.version.value
            elif available:
                number = max(available)
            else:
                raise StatusError("NOT_FOUND", f"Servable not found for request: Latest({spec.name})")
            if number not in available:
                raise StatusError("NOT_FOUND", f"Servable not found for request: Specific({spec.name}, {number})")
            version = model.versions[number]
            version.requests += 1
        try:
            yield cast(Servable, version.servable)
        finally:
            with self._changed:
                version.requests -= 1
                self._changed.notify_all()

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of every version that a model ever had, the newest first, or of the one asked for.

        A label in `spec` is not looked at, as in TensorFlow Serving.

        Raises:
            StatusError: NOT_FOUND for a model or version that was never tracked.
        """
        with self._changed:
            versions = self._models.get(spec.name, _Model()).versions
            numbers = sorted(versions, reverse=True)
            if spec.HasField("version"):
                if spec.version.value not in versions:
                    raise StatusError("NOT_FOUND", f"Could not find version {spec.version.value} of model {spec.name}")
                numbers = [spec.version.value]
            elif not numbers:
                raise StatusError("NOT_FOUND", f"Could not find any versions of model {spec.name}")
            response = get_model_status_pb2.GetModelStatusResponse()
            for number in numbers:
                version = versions[number]
                added = response.model_version_status.add(version=number, state=version.state)
                added.status.SetInParent()
                if version.error:
                    added.status.error_code = CODES.index(version.error.code)
                    added.status.error_message = version.error.message
            return response

    def unavailable(self) -> dict[str, str]:
        """The configured models that have no version available, each with the reason if there is one."""
        with self._changed:
            reasons = {}
            for name in self._serving:
                model = self._models.get(name, _Model())
                if not model.available():
                    errors = [str(version.error) for version in model.versions.values() if version.error]
                    reasons[name] = "; ".join(errors) or self._last_problem.get(name, "still loading")
            return reasons
