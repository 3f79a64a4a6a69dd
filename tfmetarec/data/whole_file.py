"""Writing a file whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and moves it to `path` once everything is written.

    A reader sees the old file or the new one, never half of one: the temporary file lies in the same
    folder, so that the move is a rename. An exception inside the block, an interrupt included, removes
    the temporary file and leaves `path` as it was.

    Args:
        path: The file to write. Its folder is made if need be.

    Yields:
        A path in the same folder, named `writing-` and the file's own name, so that libraries which
        choose a format by the suffix choose the right one.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with write_whole(folder / "scores.json") as temporary:
    ...     _ = temporary.write_text("[0.5]")
    >>> [path.name for path in folder.iterdir()]
    ['scores.json']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"writing-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        # After a successful move there is nothing left to remove.
        temporary.unlink(missing_ok=True)
