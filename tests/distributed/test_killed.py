"""Killed at any moment, also while it saves, and resumed each time, a run ends with the bits of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from astra_accel.training.checkpoint.layout import list_checkpoints
from tests.helpers.processes import free_port
from tests.helpers.runs import ROOT, largest_difference
from tests.helpers.waiting import wait_until

SCRIPT = ROOT / "tests" / "helpers" / "unreliable.py"
STEPS = 60


@pytest.mark.slow
@pytest.mark.parametrize("saving", ["at once", "async"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2"])
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(kind: str, saving: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _launch(whole, kind, saving).wait(300) == 0
    draw, moments = random.Random(kind), []
    while len(moments) < 20:
        job = _launch(killed, kind, saving)
        # Every other one while it saves, the rest wherever it is.
        _wait_for_checkpoint(job, killed, and_a_save=len(moments) % 2 == 1)
        time.sleep(draw.uniform(0, 0.01 if len(moments) % 2 else 0.1))
        if job.poll() is not None:
            break
        moments.append(_is_saving(killed))
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(30)
    assert len(moments) == 20, f"it ended after {len(moments)} kills"
    assert any(moments), "no kill met a save"
    assert _launch(killed, kind, saving).wait(300) == 0
    weights = [load_file(run / "tester" / "trained.safetensors") for run in (whole, killed)]
    assert largest_difference(*weights) == 0


def _launch(folder: Path, kind: str, saving: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    arguments = [str(folder), "none", "60", kind, str(STEPS), saving]
    return subprocess.Popen(
        [*command, "--master_port", str(free_port()), str(SCRIPT), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_for_checkpoint(job: subprocess.Popen[bytes], run: Path, and_a_save: bool) -> None:
    """Until there is a new checkpoint, and the next is being saved; or the job has ended."""
    before = _newest(run)
    wait_until(lambda: _newest(run) != before or job.poll() is not None, "a checkpoint", pause=0.005)
    if and_a_save:
        wait_until(lambda: _is_saving(run) or job.poll() is not None, "a save", pause=0.001)


def _is_saving(run: Path) -> bool:
    return bool(list((run / "checkpoints").glob(".*.tmp")))


def _newest(run: Path) -> str | None:
    found = list_checkpoints(run / "checkpoints")
    return found[-1].name if found else None
