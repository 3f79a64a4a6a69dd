"""How requests are gathered, split and put together; the model is a function that notes the sizes of its runs."""

import threading

import numpy as np
import pytest

from tfmetarec.server import BatchingOptions, StatusError, batching, config


class Doubling:
    """Stands where a loaded version stands: doubles `x`, gives its row numbers, and notes how many rows each run had."""

    def __init__(self):
        self.sizes = []
        self.close_hooks = []

    def run_session(self, feeds, fetches, timeout_ms):
        self.sizes.append(len(feeds["x"]))
        outputs = {"double": 2 * feeds["x"], "row": np.arange(len(feeds["x"]))}
        return [outputs[name] for name in fetches]


@pytest.fixture
def doubling():
    servable = Doubling()
    yield servable
    for close in servable.close_hooks:
        close()


def test_a_request_larger_than_one_run_is_split_and_comes_back_whole(doubling):
    options = BatchingOptions(max_batch_size=10, max_execution_batch_size=4, num_batch_threads=1)
    batching.enable_batching(doubling, options)
    x = np.arange(10.0)
    double, row = doubling.run({"x": x}, ["double", "row"], 0)
    assert double.tolist() == (2 * x).tolist()
    assert doubling.sizes == [4, 4, 2]
    assert row.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    with pytest.raises(StatusError, match="Task size 11 is larger than maximum input batch size 10"):
        doubling.run({"x": np.arange(11.0)}, ["double"], 0)


def test_requests_for_some_of_the_outputs_are_gathered_too(doubling):
    options = BatchingOptions(max_batch_size=2, batch_timeout_micros=2_000_000, num_batch_threads=1)
    batching.enable_batching(doubling, options)
    answers = {}

    def ask(number):
        answers[number] = doubling.run({"x": np.array([float(number)])}, ["double"], 0)[0].tolist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {3: [6.0], 5: [10.0]}
    assert doubling.sizes == [2]


def test_splitting_needs_its_switch(tmp_path):
    path = tmp_path / "batching.config"
    text = "max_batch_size { value: 8 } max_execution_batch_size { value: 2 } "
    path.write_text(text)
    assert BatchingOptions.from_proto(config.read_batching(str(path))).rows_at_once == 8
    path.write_text(text + "enable_large_batch_splitting { value: true }")
    assert BatchingOptions.from_proto(config.read_batching(str(path))).rows_at_once == 2


def test_runs_larger_than_requests_are_refused():
    with pytest.raises(StatusError) as caught:
        BatchingOptions(max_batch_size=4, max_execution_batch_size=5)
    assert caught.value.message == "`max_execution_batch_size` must be from 1 to `max_batch_size`, 4. Received: 5"


def test_a_version_may_bring_its_own_options(tmp_path):
    common = BatchingOptions(max_batch_size=4, num_batch_threads=3)
    assert batching.options_of(tmp_path, common, per_model=False) is common
    assert batching.options_of(tmp_path, common, per_model=True) is None
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 10 } num_batch_threads { value: 9 }")
    assert batching.options_of(tmp_path, common, per_model=False) is common
    own = batching.options_of(tmp_path, common, per_model=True)
    assert (own.max_batch_size, own.num_batch_threads) == (10, 3)
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size: ten")
    with pytest.raises(StatusError, match=r"Invalid protobuf file: '.*batching_params\.pbtxt'"):
        batching.options_of(tmp_path, common, per_model=True)
