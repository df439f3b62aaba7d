"""A process that raises, dies or hangs ends the whole job soon, with its error, and the last checkpoint whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from astra_accel.training.checkpoint.layout import list_checkpoints
from astra_accel.training.checkpoint.verify import verify_checkpoint
from tests.helpers.processes import free_port
from tests.helpers.runs import ROOT
from tests.helpers.waiting import SECONDS, wait_until

SCRIPT = ROOT / "tests" / "helpers" / "unreliable.py"
TIMEOUT = 10


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise", ["ValueError: process 1 can't compute its loss"]),
        pytest.param("die", ["RankError: process 0 lost the others"], marks=pytest.mark.slow),
        pytest.param(
            "hang",
            [f"RankError: process 0 lost the others: one of them died, or did not answer for {TIMEOUT} s"],
            marks=pytest.mark.slow,  # a launcher gives a process that hangs half a minute to end
        ),
    ],
)
def test_a_lost_process_ends_the_job_within_a_minute(fault: str, expected: list[str], tmp_path: Path) -> None:
    job = _launch(tmp_path, fault, ["--config_file", str(ROOT / "accelerate_configs" / "cpu_2.yaml")])
    _wait_for_checkpoint(tmp_path, 2, job)
    members = psutil.Process(job.pid).children(recursive=True)
    _, errors = job.communicate(timeout=SECONDS)
    assert job.returncode != 0
    for text in expected:
        assert text in errors
    assert not [process for process in members if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    _assert_whole(tmp_path, 2)


@pytest.mark.slow
def test_a_node_that_is_killed_ends_the_other(tmp_path: Path) -> None:
    """Two launches of one job on this machine, each with a process of its own; one is killed, launcher and all."""
    config = yaml.safe_load((ROOT / "accelerate_configs" / "multi_node.yaml").read_text())
    config |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no", "main_process_port": free_port()}
    file = tmp_path / "nodes.yaml"
    file.write_text(yaml.safe_dump(config))
    options = ["--config_file", str(file), "--machine_rank"]
    nodes = [_launch(tmp_path / "run", "hang", [*options, str(rank)], timeout=3600) for rank in range(2)]
    _wait_for_checkpoint(tmp_path / "run", 2, nodes[0])
    for process in [*psutil.Process(nodes[1].pid).children(recursive=True), psutil.Process(nodes[1].pid)]:
        process.send_signal(signal.SIGKILL)
    nodes[1].communicate(timeout=SECONDS)
    _, errors = nodes[0].communicate(timeout=SECONDS)
    assert nodes[0].returncode != 0
    assert "RankError: process 0 lost the others" in errors
    _assert_whole(tmp_path / "run", 2)


def _launch(folder: Path, fault: str, options: list[str], timeout: float = TIMEOUT) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1", *options]
    return subprocess.Popen(
        [*command, str(SCRIPT), str(folder), fault, str(timeout)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def _wait_for_checkpoint(folder: Path, step: int, job: subprocess.Popen[str]) -> None:
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    wait_until(lambda: checkpoint.is_dir() or job.poll() is not None, str(checkpoint), pause=0.1)
    assert checkpoint.is_dir(), job.communicate()[1]


def _assert_whole(folder: Path, step: int) -> None:
    newest = list_checkpoints(folder / "checkpoints")[-1]
    assert newest.name == f"step-{step:06d}"
    verify_checkpoint(newest)
