import os

import pytest

from astra_accel.cli import main
from astra_accel.jobs import train as run
from astra_accel.models.loading.tiny import save_tiny
from tests.helpers.runs import TINY_DPO


class Replaced(Exception):
    """What the process would have become."""


def test_a_launcher_takes_the_place_of_the_command_and_so_gets_its_signals(monkeypatch):
    def execv(_, command):
        raise Replaced(command)

    monkeypatch.setattr(os, "execv", execv)

    with pytest.raises(Replaced) as caught:
        main(["train", "--config", str(TINY_DPO), "--accelerate-config", "cpu_2", "--resume", "auto", "--lora.r", "2"])

    (command,) = caught.value.args
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert command[-6:] == ["--config", str(TINY_DPO), "--resume", "auto", "--lora.r", "2"]


def test_without_a_launcher_the_run_is_in_this_process(monkeypatch):
    jobs = []
    monkeypatch.setattr(run, "main", lambda job: jobs.append(job) or 75)

    assert main(["train", "--config", str(TINY_DPO), "--resume", "auto"]) == 75

    assert jobs == [["--config", str(TINY_DPO), "--resume", "auto"]]


def test_an_evaluation_is_launched_with_all_that_was_asked(monkeypatch, tmp_path):
    def execv(_, command):
        raise Replaced(command)

    monkeypatch.setattr(os, "execv", execv)
    tester = str(save_tiny(tmp_path, "llama"))
    asked = [tester, "--config", str(TINY_DPO), "--output", "out", "--overwrite"]

    with pytest.raises(Replaced) as caught:
        main(["evaluate", *asked, "--accelerate-config", "cpu_2", "--evaluation.threshold", "0.7"])

    (command,) = caught.value.args
    assert command[-10:] == ["--module", "astra_accel.jobs.evaluate", *asked, "--evaluation.threshold", "0.7"]


def test_a_command_without_fields_takes_none(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", "somewhere", "--training.lr", "1"])

    assert ended.value.code == 2
    assert "unrecognized arguments: --training.lr 1" in capsys.readouterr().err
