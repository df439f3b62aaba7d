"""Where an evaluation or a comparison is written: found out before it begins, and one at a time."""

import pytest

from astra_accel.cli import main
from astra_accel.errors import ConfigurationError
from astra_accel.evaluation.loop import evaluate_to
from astra_accel.files.run_lock import FolderInUseError, RunLock


class Evaluator:
    """One that has something to do, and must not begin with it."""

    seeds = ("Good morning.",)

    def describe(self):
        return {}


def test_a_second_evaluation_of_a_folder_is_told_who_writes_there(tmp_path):
    lock = RunLock(tmp_path, "--output")
    lock.acquire()

    with pytest.raises(FolderInUseError, match=rf"--output {tmp_path} is in use: process \d+ on "):
        evaluate_to(tmp_path, Evaluator(), overwrite=True)

    lock.verify()
    lock.release()


def test_a_folder_that_can_t_be_written_to_is_found_first():
    with pytest.raises(ConfigurationError, match="--output /proc/none can't be written to"):
        evaluate_to("/proc/none", Evaluator())


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "one", "other", "--output", "/proc/none/differences.json"],
        ["report", "one", "--output", "/proc/none/page.html"],
        ["export", "one", "--dataset", "/proc/none/data"],
        ["export", "one", "--merged", "/proc/none/model"],
    ],
)
def test_commands_look_first_whether_they_can_write(command, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "/proc/none" in error
    assert "can't be written to" in error
