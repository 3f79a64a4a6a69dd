"""Notebooks run as they are, and are committed with what they showed."""

import ast
import json
import os
import re
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


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_names_no_machine(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell["metadata"]
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            output.get("data", {}).pop("image/png", None)  # What is drawn may spell anything.
            assert not re.search(r"/(tmp|home|root|Users)/|file://|cpython|site-packages", json.dumps(output))


def run_quickly(number: str, last: str, where: Path) -> None:
    """Runs a notebook in a kernel of its own with reduced sizes, and a cell `last` after it."""
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    content = json.loads(notebook.read_text())
    content["cells"].append(
        {"cell_type": "code", "execution_count": None, "id": "last", "metadata": {}, "outputs": [], "source": last}
    )
    copy = where / "notebook.ipynb"
    copy.write_text(json.dumps(content))
    ran = subprocess.run(
        [sys.executable, str(NOTEBOOKS[0].parent / "run.py"), str(copy)],
        cwd=where,
        env={**os.environ, "TFMETAREC_QUICK": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_the_quickstart_learns_compares_and_exports(tmp_path: Path) -> None:
    run_quickly("01", "assert published.version == 1 and len(table.pivot()) == 5", tmp_path)


def test_files_of_ones_own_become_a_table_and_a_picture(tmp_path: Path) -> None:
    run_quickly("02", "assert table.pivot().height == 6 and (run / 'report.html').exists()", tmp_path)


def test_curves_over_shots_and_steps_are_drawn(tmp_path: Path) -> None:
    run_quickly("03", "assert over_steps.height == 6 and len(floors) == 4", tmp_path)


@pytest.mark.serving
def test_two_versions_are_served_and_one_taken_back(tmp_path: Path) -> None:
    run_quickly("06", "assert tmr.export.retired_versions(base) == [2]", tmp_path)


@pytest.mark.serving
def test_the_pipeline_from_one_domain_to_a_server_runs_on_a_tenth_of_the_households(tmp_path: Path) -> None:
    run_quickly("04", "assert len(found) == 5", tmp_path)


def test_a_search_of_three_trials_runs_and_is_looked_at(tmp_path: Path) -> None:
    run_quickly("05", "assert found.trials.height == 3", tmp_path)
