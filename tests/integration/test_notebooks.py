"""Notebooks run as they are, and are committed with what they showed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_is_python_that_was_run_in_order(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        ast.parse("".join(cell["source"]))
        assert not any(output["output_type"] == "error" for output in cell["outputs"])


@pytest.mark.slow
@pytest.mark.serving
def test_the_pipeline_from_one_domain_to_a_server_runs_on_a_tenth_of_the_households(tmp_path: Path) -> None:
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("04")]
    program = "\n".join("".join(cell["source"]) for cell in code_cells(notebook)) + "\nassert len(found) == 5\n"
    environment = {**os.environ, "TFMETAREC_QUICK": "1"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
