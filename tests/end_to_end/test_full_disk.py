"""A disk that is full while a run saves: told by name, and no good checkpoint lost."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from astra_accel.training.checkpoint.layout import list_checkpoints
from astra_accel.training.checkpoint.verify import verify_checkpoint
from tests.helpers.runs import ROOT, TINY_DPO, metrics

SIZE = 1_200_000
"""Bytes; a checkpoint of the tiny tester that is trained in full takes about 700 kB."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def _train(run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "train.py"), "--config", str(TINY_DPO)]
    fixed = {"output_dir": run, "training_steps": 3, "save_steps": 1, "eval_steps": "null"}
    fields = [part for name, value in fixed.items() for part in (f"--training.{name}", str(value))]
    return subprocess.run(
        [*command, *fields, "--lora", "null", *options], capture_output=True, text=True, cwd=ROOT, check=False
    )


def _checkpoints(run: Path) -> list[str]:
    found = list_checkpoints(run / "checkpoints")
    for path in found:
        verify_checkpoint(path)
    return [path.name for path in found]


def test_a_full_disk_ends_a_run_and_leaves_its_last_checkpoint(small_disk: Path) -> None:
    run = small_disk / "run"
    result = _train(run)
    assert result.returncode == 1
    assert "UnsavedError" in result.stderr
    assert re.search(r"\.step-000002\.tmp could not be written \(\d+ bytes are free\)", result.stderr)
    assert _checkpoints(run) == ["step-000001"]
    assert list((run / "checkpoints").glob(".*")) == []
    assert {line["step"] for line in metrics(run)} == {1, 2}


@pytest.mark.slow
def test_a_run_can_be_told_to_go_on_without_checkpoints(small_disk: Path) -> None:
    run = small_disk / "run"
    # Its tester would not fit either.
    result = _train(run, "--training.stop_if_unsaved", "false")
    assert result.stderr.count("could not be written") >= 2
    assert "the run continues (training.stop_if_unsaved)" in result.stderr
    assert _checkpoints(run) == ["step-000001"]
    assert {line["step"] for line in metrics(run)} == {1, 2, 3}
