"""Versions of a served model under its base path: written aside, published whole, kept, and taken back.

Servers look at numeric folders alone. Everything else here has another name for as long as it is not whole:
`writing-*` until it is published, `removing-*` once it is being deleted, `N.retired` after a rollback.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RETIRED = ".retired"


def versions(path: str | Path) -> list[int]:
    """Published versions under `path`, oldest first."""
    return _numbers(Path(path), "")


def retired_versions(path: str | Path) -> list[int]:
    """Versions that a rollback has taken out of service, oldest first."""
    return _numbers(Path(path), RETIRED)


def next_version(path: str | Path) -> int:
    """The number that the next version gets: larger than any before it, retired ones too."""
    return max([*versions(path), *retired_versions(path)], default=0) + 1


@contextmanager
def staging(base: Path) -> Iterator[Path]:
    """A folder under `base` to write a version in, gone at the end; what crashed exports left is cleared away.

    The folder around it is locked while it is written, so that a later export knows it from one left behind.
    """
    base.mkdir(parents=True, exist_ok=True)
    with _alone(base):
        for left in base.iterdir():
            if left.name.startswith("removing-") or (left.name.startswith("writing-") and _is_abandoned(left)):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="writing-", dir=base))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        version = folder / "version"
        version.mkdir()
        yield version
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def publish(version: Path, base: Path) -> int:
    """Flushes a staged version to disk and renames it to its number, which it returns."""
    flush(version)
    with _alone(base):
        number = next_version(base)
        version.rename(base / str(number))  # Atomic.
        _sync(base)
    return number


def prune(path: str | Path, keep: int) -> list[int]:
    """Deletes all but the newest `keep` published versions, and what was retired before them.

    Raises:
        ValueError: if `keep` is less than 1.
    """
    check_keep(keep)
    base = Path(path)
    with _alone(base):
        old = versions(base)[:-keep]
        oldest = min(versions(base)[-keep:], default=0)
        retired = [number for number in retired_versions(base) if number < oldest]
        for name in [*map(str, old), *(f"{number}{RETIRED}" for number in retired)]:
            going = base / f"removing-{name}"
            (base / name).rename(going)  # At once, so that no server ever sees half a version.
            shutil.rmtree(going)
    return old


def check_keep(keep: int | None) -> None:
    """Refuses to keep less than the version that is being published."""
    if keep is not None and keep < 1:
        raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")


def rollback(path: str | Path, to: int | None = None) -> int:
    """Makes an earlier version the newest one: later ones are renamed to `N.retired`, which servers ignore.

    The same call with a retired version as `to` brings it back. Numbers are not used again.

    Args:
        path: base path of the served model.
        to: version to serve. Defaults to the one before the newest.

    Returns:
        The version that is the newest now.

    Raises:
        ValueError: if there is no such version, or none before the newest.

    Example:
    >>> import tempfile
    >>> base = Path(tempfile.mkdtemp())
    >>> for number in ("1", "2", "3"):
    ...     (base / number).mkdir()
    >>> rollback(base), versions(base), retired_versions(base)
    (2, [1, 2], [3])
    >>> rollback(base, to=3), versions(base), retired_versions(base)
    (3, [1, 2, 3], [])
    """
    base = Path(path)
    if not base.is_dir():
        raise ValueError(f"there is no version before the newest under {base}. Published: []")
    with _alone(base):
        return _rolled_back(base, to)


def _rolled_back(base: Path, to: int | None) -> int:
    published, retired = versions(base), retired_versions(base)
    if to is None:
        if len(published) < 2:
            raise ValueError(f"there is no version before the newest under {base}. Published: {published}")
        to = published[-2]
    if to in retired and to not in published:
        (base / f"{to}{RETIRED}").rename(base / str(to))
    elif to not in published:
        raise ValueError(f"`to` must be a version under {base}: {sorted({*published, *retired})}. Received: to={to}")
    # The newest goes last: a server then changes its version once.
    for number in published:
        if number > to:
            (base / str(number)).rename(base / f"{number}{RETIRED}")
    _sync(base)
    return to


def flush(folder: Path) -> None:
    """Writes a folder and everything in it to disk."""
    for file in folder.rglob("*"):
        _sync(file)
    _sync(folder)


def _numbers(base: Path, suffix: str) -> list[int]:
    if not base.is_dir():
        return []
    names = [
        child.name.removesuffix(suffix) for child in base.iterdir() if child.name.endswith(suffix) and child.is_dir()
    ]
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    """While no other export, rollback or clearing away under `base` changes anything."""
    lock = os.open(base, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody holds the lock of a folder: the process that made it is gone."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
