"""Files to run an export with: TensorFlow Serving's own, docker compose, Kubernetes, monitoring, client examples."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from tfmetarec.export.deployment.checks import check_serving_config
from tfmetarec.export.deployment.published import read_published
from tfmetarec.export.deployment.texts import models_source, texts

__all__ = ["check_serving_config", "write_serving_config"]

MARK = "Written by `tfmetarec export --serving-config`"
"""In every file; one without it is somebody else's and stays."""


def write_serving_config(
    model_base_path: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    stable: int | None = None,
    canary: int | None = None,
    mount: str = "/models",
) -> list[Path]:
    """Writes everything that is needed to serve an export: `docker compose up` or `kubectl apply -f` away.

    `models.config` (versions and labels), `batching.config` (sizes from the warm-up), `monitoring.config`,
    `ssl.config.example` with the script that makes a real one, `docker-compose.yaml` with Prometheus and a Grafana
    dashboard, `kubernetes/`, and `clients/` in Python, JavaScript and curl. All is checked before any of it is moved to
    `folder`; what was written there before is replaced, and nothing else is touched.

    Args:
        model_base_path: the folder whose numbered folders are the published versions.
        folder: where to write. Made if need be.
        name: str, of letters, digits, `_`, `.` and `-`. The model's name in requests. Defaults to the name of the
            folder `model_base_path`.
        stable: int. The version that clients get. Defaults to the newest.
        canary: int. A version on trial, loaded beside it. Defaults to none.
        mount: str, an absolute path. Where servers see the folder that holds `model_base_path`. Defaults to
            `"/models"`.

    Returns:
        The files.

    Raises:
        ValueError: if nothing is published, a version is not, a name breaks a rule, or `folder` has a file of another
            origin where one is to be written. Nothing is changed then.

    Example:
    >>> write_serving_config("exports/journey", "serving", stable=1, canary=2)  # doctest: +SKIP
    """
    base, target = Path(model_base_path), Path(folder)
    published = read_published(base, stable, canary)
    name = published.folder if name is None else name
    # It goes into addresses, scripts and the names of Kubernetes objects.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"`name` must be of letters, digits, `_`, `.` and `-` alone. Received: name={name!r}")
    if not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", mount):
        raise ValueError(f"`mount` must be an absolute path of plain characters. Received: mount={mount!r}")
    written = texts(published, name, mount, models_source(base, target))
    _check_free(target, written)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="writing-", dir=target.parent))
    try:
        for path, text in written.items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_text(text)
            if text.startswith("#!"):
                (staging / path).chmod(0o755)
        check_serving_config(staging)
        for path in written:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / path, target / path)
    finally:
        shutil.rmtree(staging)
    return [target / path for path in sorted(written)]


def _check_free(target: Path, written: dict[str, str]) -> None:
    for path in written:
        place = target / path
        for above in [place.parent, *place.parent.parents]:
            if above.exists() and not above.is_dir():
                raise ValueError(f"`folder` must be a folder, and its parts folders. Received: the file {above}")
        if place.is_dir() or (place.exists() and MARK not in place.read_text(errors="replace")):
            raise ValueError(
                f"`folder` has a {path} that this did not write; move it away, or choose another folder. "
                f"Received: {target}"
            )
