"""Runs notebooks in a kernel and keeps what they show: `python notebooks/run.py [NOTEBOOK ...]`, by default all.

Times and what libraries say on standard error are not kept. With TFMETAREC_QUICK set the sizes are reduced.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def shown(notebook: Any) -> Any:
    """The notebook without what differs from run to run: times, and notices on standard error."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main(arguments: list[str]) -> None:
    for path in map(Path, arguments) if arguments else sorted(FOLDER.glob("*.ipynb")):
        print(path)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(path.parent)}}).execute()
        nbformat.write(shown(notebook), path)


if __name__ == "__main__":
    main(sys.argv[1:])
