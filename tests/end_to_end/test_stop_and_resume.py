"""A run that a scheduler stops and starts again, as a user's job script has it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from astra_accel.errors import EXIT_CODE
from tests.helpers.runs import (
    TINY_DPO,
    checkpoint_weights,
    largest_difference,
    launch,
    metrics,
    start,
    timeless,
    train_tiny,
)

# No checkpoint of its own before the end: the one to continue from is that of the signal.
SETTINGS = ("--training.save_steps", "100", "--training.eval_steps", "null", "--prompts.test", "null")


def _wait_for_a_training_step(process: subprocess.Popen[str], run: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().endswith("\n")):
        assert process.poll() is None, "the process ended before a training step"
        assert time.monotonic() < end, "no training step was done"
        time.sleep(0.01)


def test_a_run_stopped_by_sigterm_and_resumed_automatically_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    job = ("--config", TINY_DPO, "--training.output_dir", run, *SETTINGS, "--resume", "auto")

    with start("train.py", *job) as process:
        try:
            _wait_for_a_training_step(process, run)
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()

    assert process.returncode == EXIT_CODE, errors
    assert f"there is no whole checkpoint in {run / 'checkpoints'}: the run starts from the beginning" in output
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"stopped by a signal after step {step}; to resume: --resume {checkpoint}, or --resume auto\n" in output
    assert metrics(run)[-1]["step"] == step < 6
    assert not (run / "tester").exists()

    again = launch("train.py", *job)

    assert again.returncode == 0, again.stderr
    assert f"resumed from {checkpoint} at step {step}" in again.stdout
    train_tiny(whole, *SETTINGS)
    expected, resumed = checkpoint_weights(whole, 6), checkpoint_weights(run, 6)
    assert all(bool((expected[name] == resumed[name]).all()) for name in expected)
    assert largest_difference(resumed, checkpoint_weights(run, step)) > 0
    assert timeless(run) == timeless(whole)
    assert (run / "tester").exists()
