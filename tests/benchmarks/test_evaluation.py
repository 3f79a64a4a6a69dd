"""The benchmark of evaluation runs, and says what it measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_part_is_timed_and_their_sum_is_judged(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    evaluation = importlib.import_module("benchmarks.evaluation")
    assert evaluation.main(["--quick", "--out", str(tmp_path / "out.json")]) == 0
    (rows,) = json.loads((tmp_path / "out.json").read_text())["figures"].values()
    *parts, total = rows
    assert total["seconds"] == pytest.approx(sum(part["seconds"] for part in parts), rel=1e-3)
    assert len(parts) == 8
    assert "benchmarks" in sys.modules
