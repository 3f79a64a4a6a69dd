import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tfmetarec.server import main


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.serving
def test_told_to_stop_the_process_finishes_what_it_is_answering_and_exits_with_0(exported, tmp_path, http_call):
    shutil.copytree(exported / "1", tmp_path / "basket" / "1")
    port = free_port()
    flags = [
        "--port=0",
        f"--rest_api_port={port}",
        "--model_name=basket",
        "--model_base_path",
        tmp_path / "basket",
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "tfmetarec.server", *flags], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while "Serving REST" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        answers = []

        def ask(steps):
            body = {"signature_name": "slow", "inputs": [steps]}
            answers.append(http_call(port, "POST", "/v1/models/basket:predict", body))

        started = time.monotonic()
        ask(2000)
        steps = int(2000 * 1.5 / (time.monotonic() - started))
        thread = threading.Thread(target=ask, args=(steps,))
        thread.start()
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
        thread.join()
        assert answers[1] == (200, {"outputs": [float(steps)]})
    finally:
        process.kill()
        process.wait()


def test_wrong_flags_exit_with_2_and_say_why(caplog):
    assert main(["--rest_api_port=8501"]) == 2
    assert "`--model_base_path` or `--model_config_file` must be given" in caplog.text


def test_a_model_that_cannot_be_loaded_exits_with_1_and_says_why(tmp_path, caplog):
    (tmp_path / "m" / "1").mkdir(parents=True)
    assert main([f"--model_base_path={tmp_path / 'm'}", "--model_name=m"]) == 1
    assert "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available" in caplog.text


def test_flags_without_effect_are_accepted_and_said_to_be(tmp_path, caplog):
    (tmp_path / "m" / "1").mkdir(parents=True)
    main([f"--model_base_path={tmp_path / 'm'}", "--flush_filesystem_caches=false"])
    assert "The flag --flush_filesystem_caches has no effect here" in caplog.text
