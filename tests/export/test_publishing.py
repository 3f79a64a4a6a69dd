import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfmetarec.export import publishing, retired_versions, rollback, versions
from tfmetarec.export.publishing import next_version, prune, publish, staging


@pytest.fixture
def base(tmp_path):
    """Versions 1 to 4, each with a file."""
    for number in range(1, 5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "saved_model.pb").write_text(str(number))
    return tmp_path


def names(base):
    return sorted(path.name for path in base.iterdir())


def published(base, text="new"):
    with staging(base) as staged:
        (staged / "saved_model.pb").write_text(text)
        return publish(staged, base)


def test_a_version_is_published_under_the_next_number_and_nothing_else_stays(base):
    assert published(base) == 5
    assert names(base) == ["1", "2", "3", "4", "5"]
    assert (base / "5" / "saved_model.pb").read_text() == "new"


def test_what_is_not_published_leaves_nothing_whatever_was_raised(base):
    def interrupted():
        with staging(base) as staged:
            (staged / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(base) == ["1", "2", "3", "4"]


def test_no_number_is_used_twice_not_even_that_of_a_retired_version(base):
    rollback(base)
    assert (versions(base), retired_versions(base), next_version(base)) == ([1, 2, 3], [4], 5)
    assert published(base) == 5


def test_a_rollback_goes_to_the_version_before_or_to_the_one_named_and_back(base):
    assert rollback(base) == 3
    assert rollback(base, to=1) == 1
    assert (versions(base), retired_versions(base)) == ([1], [2, 3, 4])
    assert rollback(base, to=3) == 3
    assert (versions(base), retired_versions(base)) == ([1, 3], [2, 4])
    assert (base / "3" / "saved_model.pb").read_text() == "3"


def test_a_rollback_that_cannot_be_changes_nothing(base):
    with pytest.raises(ValueError, match=r"`to` must be a version under .*: \[1, 2, 3, 4\]. Received: to=9"):
        rollback(base, to=9)
    assert versions(base) == [1, 2, 3, 4]
    rollback(base, to=1)
    with pytest.raises(ValueError, match=r"there is no version before the newest under .* Published: \[1\]"):
        rollback(base)
    with pytest.raises(ValueError, match=r"Published: \[\]"):
        rollback(base / "nowhere")


def test_old_versions_are_deleted_with_what_was_retired_before_them(base):
    rollback(base, to=2)
    published(base)  # 5, beside 1 and 2; 3 and 4 are retired.
    assert prune(base, 2) == [1]
    assert names(base) == ["2", "3.retired", "4.retired", "5"]
    assert prune(base, 1) == [2]
    assert names(base) == ["5"]
    assert prune(base, 1) == []
    with pytest.raises(ValueError, match="`keep` must be at least 1. Received: keep=0"):
        prune(base, 0)


def test_what_a_crash_left_is_cleared_away_but_not_what_somebody_is_writing(base):
    (base / "writing-left").mkdir()
    (base / "removing-1").mkdir()
    with staging(base) as first:
        (first / "one").write_text("")
        assert published(base) == 5
        assert first.exists()
        assert "writing-left" not in names(base)
        assert "removing-1" not in names(base)
        assert publish(first, base) == 6
    assert names(base) == ["1", "2", "3", "4", "5", "6"]


def test_many_writers_at_once_lose_nothing_and_end_without_an_error(tmp_path):
    base = tmp_path / "model"

    def write(_):
        number = published(base)
        prune(base, 1)
        return number

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(write, range(40)))
    assert sorted(numbers) == list(range(1, 41))
    assert names(base) == ["40"]


def test_only_folders_that_are_called_as_servers_call_versions_count(base):
    (base / "007").mkdir()
    (base / "9").write_text("a file")
    assert versions(base) == [1, 2, 3, 4]
    assert prune(base, 3) == [1]


WRITER = """
import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("publishing", sys.argv[2])  # Without TensorFlow, which takes seconds.
publishing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(publishing)
base = Path(sys.argv[1])
print("ready", flush=True)
while True:
    with publishing.staging(base) as staged:
        for number in range(20):
            (staged / f"part-{number}").write_bytes(b"x" * 20_000)
        publishing.publish(staged, base)
    publishing.prune(base, 3)
    if len(publishing.versions(base)) > 1:
        publishing.rollback(base)
"""


def killed_at_random(base, script, arguments, rng, longest_s):
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, longest_s))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_writer_killed_at_any_moment_leaves_only_whole_versions(tmp_path):
    base = tmp_path / "model"
    rng = np.random.default_rng(int.from_bytes(os.urandom(2), "big"))  # Another moment each time.
    newest = 0
    for _ in range(20):
        killed_at_random(base, WRITER, [str(base), publishing.__file__], rng, 0.2)
        for number in versions(base):
            sizes = [file.stat().st_size for file in (base / str(number)).iterdir()]
            assert sizes == [20_000] * 20, number
        numbers = [*versions(base), *retired_versions(base)]
        assert max(numbers, default=0) >= newest
        newest = max(numbers, default=0)
    assert newest > 0
    shutil.rmtree(base)


EXPORTER = """
import sys
from pathlib import Path
import keras
from tfmetarec.export import saved_model

learner = keras.models.load_model(sys.argv[2])
print("ready", flush=True)
while True:
    saved_model(learner, sys.argv[1], keep=2)
"""


@pytest.mark.slow
def test_an_export_killed_at_any_moment_leaves_the_old_version_served(shops, make_learner, tmp_path, http_get):
    """The versions are looked at by the server itself, which is running all the while."""
    from tfmetarec.export import saved_model
    from tfmetarec.server import Server

    learner = make_learner(shops["implicit"][1])
    learner.save(tmp_path / "learner.keras")
    base = tmp_path / "shop"
    saved_model(learner, base)
    rng = np.random.default_rng(int.from_bytes(os.urandom(2), "big"))
    with Server("shop", base, file_system_poll_wait_s=0.2) as server:
        server.wait_until_available()
        for _ in range(4):
            killed_at_random(base, EXPORTER, [str(base), str(tmp_path / "learner.keras")], rng, 25.0)
            time.sleep(1)
            for number in versions(base):
                files = {str(path.relative_to(base / str(number))) for path in (base / str(number)).rglob("*")}
                assert {"saved_model.pb", "variables/variables.index", "assets.extra/tfmetarec.json"} <= files
            states = http_get(server.rest_api_port, "/v1/models/shop")["model_version_status"]
            assert "AVAILABLE" in {state["state"] for state in states}
            assert all(state["status"]["error_code"] == "OK" for state in states)
            assert http_get(server.rest_api_port, "/v1/models/shop/metadata")["model_spec"]["name"] == "shop"
