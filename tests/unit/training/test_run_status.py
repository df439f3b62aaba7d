import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from astra_accel.errors import ConfigurationError, Preempted
from astra_accel.files.run_status import STATUS, Status, read_status, telling_status
from tests.helpers.waiting import wait_until

RUNNING = """
import sys, time
from pathlib import Path
from astra_accel.files.run_status import telling_status
with telling_status(Path(sys.argv[1]), here=True):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_run_says_that_it_goes_on_and_that_it_ended(tmp_path):
    with telling_status(tmp_path, here=True):
        during = read_status(tmp_path)

    assert (during.state, during.over) == ("running", False)
    assert read_status(tmp_path) == Status("ended")
    assert read_status(tmp_path).over


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("no\ud83d more"), Status("failed", "RuntimeError: no? more")),
        (Preempted(Path("runs/one/step-3")), Status("stopped", "resume from runs/one/step-3")),
        (KeyboardInterrupt(), Status("stopped", "by Ctrl-C")),
    ],
)
def test_what_ended_a_run_is_written_and_goes_on_its_way(tmp_path, error, expected):
    with pytest.raises(type(error)):
        with telling_status(tmp_path, here=True):
            raise error

    assert read_status(tmp_path) == expected


def test_other_processes_write_nothing(tmp_path):
    with telling_status(tmp_path, here=False):
        pass

    assert list(tmp_path.iterdir()) == []
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "not there") is None


def test_a_killed_process_is_gone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", RUNNING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "begun\n"
        assert read_status(tmp_path) == Status("running")
        process.send_signal(signal.SIGKILL)
        # Before anybody waited for it, too.
        wait_until(lambda: read_status(tmp_path) != Status("running"), "another status")
    assert read_status(tmp_path) == Status("gone")


@pytest.mark.parametrize(
    ("changed", "state"),
    [({}, "running"), ({"started": 1.0}, "gone"), ({"host": "another machine", "pid": 2**22 + 1}, "running")],
)
def test_a_process_is_known_by_its_start_and_another_machines_is_believed(tmp_path, changed, state):
    with telling_status(tmp_path, here=True):
        record = json.loads((tmp_path / STATUS).read_text())
        assert (record["pid"], record["host"]) == (os.getpid(), platform.node())
        (tmp_path / STATUS).write_text(json.dumps(record | changed))

        assert read_status(tmp_path).state == state


@pytest.mark.parametrize("text", ["{", "[]", '{"state": "running"}'])
def test_a_file_that_no_run_wrote_is_named(tmp_path, text):
    (tmp_path / STATUS).write_text(text)

    with pytest.raises(ConfigurationError, match=r"status\.json is not a run's status"):
        read_status(tmp_path)


def test_a_disk_that_is_full_at_the_end_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    def fails():
        monkeypatch.setattr("astra_accel.files.run_status.write_atomically", full)
        raise RuntimeError("the loss is not finite")

    with pytest.raises(RuntimeError, match="the loss is not finite"):
        with telling_status(tmp_path, here=True):
            fails()
