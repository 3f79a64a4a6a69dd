import ast

import numpy as np
import pytest

from tfmetarec.export import GateError, ServedLearner, gate, gate_process
from tfmetarec.export.example_requests import example_request

SCORES = np.array([[0.9, 0.5, 0.5, 0.1], [0.9, 0.8, 0.7, -np.inf]], np.float32)
ITEMS = np.array([["a", "b", "c", "d"], ["e", "f", "g", "h"]])
EXPECTED = {"items": ITEMS, "scores": SCORES}


def compare(**found):
    gate._compare("case", {**EXPECTED, **found}, EXPECTED, 2)


def swapped(row, first, second):
    items = ITEMS.copy()
    items[row, [first, second]] = items[row, [second, first]]
    return items


def test_equal_answers_pass():
    compare()
    compare(scores=SCORES + np.float32(1e-6))


def test_items_may_swap_only_where_their_scores_tie():
    compare(items=swapped(0, 1, 2))
    with pytest.raises(GateError, match="case recommends other items than the live model in 2 places"):
        compare(items=swapped(1, 0, 1))


def test_items_without_a_score_and_the_last_place_may_differ():
    other = ITEMS.copy()
    other[0, 3] = other[1, 3] = "z"
    compare(items=other)


def test_other_scores_shapes_and_missing_outputs_are_told_apart():
    with pytest.raises(GateError, match="case answers 'scores' differently from the live model: up to 0.01 apart"):
        compare(scores=SCORES + np.float32(0.01))
    with pytest.raises(GateError, match=r"case answers 'scores' with shape \(2, 3\) where the live model has \(2, 4\)"):
        compare(scores=SCORES[:, :3])
    with pytest.raises(GateError, match="case has no output 'items'"):
        gate._compare("case", {"scores": SCORES}, EXPECTED, 2)


def test_not_a_number_is_never_the_right_answer():
    wrong = SCORES.copy()
    wrong[0, 0] = np.nan
    with pytest.raises(GateError, match="differently from the live model"):
        compare(scores=wrong)


def test_a_folder_that_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(GateError, match="the export does not run under the TF1 session loader"):
        gate._run_apart(tmp_path, {"serving_default/0": {"x": np.zeros(1)}})


def test_the_clean_process_knows_nothing_of_the_package():
    with open(gate_process.__file__) as source:
        tree = ast.parse(source.read())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"os", "sys", "numpy", "tensorflow"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("feedback", ["implicit", "explicit"])
def test_example_requests_hold_known_and_unknown_ids_and_every_kind_of_support(shops, make_learner, feedback):
    vocabulary = shops[feedback][1]
    served = ServedLearner(make_learner(vocabulary))
    request = example_request(served, "adapt_and_score", batch=4, support=6, candidates=5, seed=0)
    assert request["support_length"].tolist() == [6, 3, 0, 0]
    rows = vocabulary.item_rows(request["candidates"])
    assert 0 in rows
    assert (rows > 0).any()
    labels = request["support_labels"]
    assert (labels[:, 1] == 0).all()  # A row that says nothing where feedback is implicit.
    others = np.delete(labels, 1, axis=1)
    assert (others == 1).all() if feedback == "implicit" else 1 <= others.min() < others.max() <= 5
    again = example_request(served, "adapt_and_score", batch=4, support=6, candidates=5, seed=0)
    assert all(np.array_equal(request[name], again[name]) for name in request if name != "user_age")
