"""Two runs that are given one output folder, as a user's job scripts would start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from astra_accel.files.run_lock import LOCK
from tests.helpers.runs import TINY_DPO, launch, metrics, start
from tests.helpers.waiting import wait_until

SETTINGS = ("--training.save_steps", "5", "--training.eval_steps", "null", "--prompts.test", "null")
STEPS = 12


def _job(run: Path, steps: int = STEPS) -> tuple[str | Path, ...]:
    return ("--config", TINY_DPO, "--training.output_dir", run, "--training.training_steps", str(steps), *SETTINGS)


def _wait_for(process: subprocess.Popen[str], path: Path) -> None:
    wait_until(lambda: path.exists() or process.poll() is not None, str(path))
    assert path.exists(), "the process ended before that"


@pytest.mark.slow
@pytest.mark.parametrize("accelerate_config", [None, "cpu_2"], ids=["one process", "two processes"])
def test_the_second_is_told_who_writes_there_and_changes_nothing(accelerate_config: str | None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start("train.py", *_job(run), "--resume", "auto") as first:
        try:
            _wait_for(first, run / "checkpoints" / "step-000005")
            first.send_signal(signal.SIGSTOP)  # lest it end before the second begins; it is alive all the same
            for more in (["--resume", "auto"], ["--training.overwrite_output_dir", "true"]):
                second = launch("train.py", *_job(run), *more, accelerate_config=accelerate_config)
                assert second.returncode == (2 if accelerate_config is None else 1)  # the launcher's own
                (told,) = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
                assert f"error: training.output_dir {run} is in use: process {first.pid} on " in told
            first.send_signal(signal.SIGCONT)
            assert first.wait(300) == 0
        finally:
            first.kill()

    updates = [line["update"] for line in metrics(run)]
    assert updates == list(range(1, len(updates) + 1))
    assert metrics(run)[-1]["step"] == STEPS
    assert not (run / LOCK).exists()


@pytest.mark.slow
def test_a_killed_run_of_another_host_is_taken_over_and_stops_if_it_was_not_dead(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start("train.py", *_job(run, 10_000), "--resume", "auto") as first:
        try:
            _wait_for(first, run / "checkpoints" / "step-000005")
            first.send_signal(signal.SIGSTOP)  # as a machine that is suspended
            held = (run / LOCK).read_text(encoding="utf-8")
            (run / LOCK).write_text(held.replace(json.loads(held)["machine"], "another"), encoding="utf-8")
            second = subprocess.run(
                [str(part) for part in (sys.executable, "-c", IMPATIENT, *_job(run, 8), "--resume", "auto")],
                capture_output=True,
                text=True,
                check=False,
            )
            assert second.returncode == 0, second.stderr
            assert "Waiting up to 2 s for a sign of life of it" in second.stderr
            before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
            first.send_signal(signal.SIGCONT)
            _, errors = first.communicate(timeout=100)
        finally:
            first.kill()

    assert first.returncode == 1
    assert "LockLostError: this run no longer holds" in errors
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


IMPATIENT = """
import sys
from astra_accel.files import run_lock
run_lock.RunLock.__init__.__kwdefaults__.update(beat_seconds=0.2, stale_seconds=2.0)
from astra_accel.jobs.train import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_reader_that_goes_away_and_an_encoding_end_no_run(tmp_path: Path) -> None:
    shell = 'set -o pipefail; "$PY" examples/train.py "$@" 2>"$ERR" | head -3 > /dev/null'
    for run, settings in ((tmp_path / "pipe", {}), (tmp_path / "ascii", {"PYTHONIOENCODING": "ascii"})):
        line = shell if run.name == "pipe" else '"$PY" examples/train.py "$@" 2>"$ERR" > "$ERR.out"'
        ended = subprocess.run(
            ["bash", "-c", line, "train", *map(str, _job(run, 10))],
            env={**os.environ, "PY": sys.executable, "ERR": str(run) + ".err", **settings},
            check=False,
        )
        assert ended.returncode == 0
        assert json.loads((run / "status.json").read_text())["state"] == "ended"
        assert metrics(run)[-1]["step"] == 10
        assert (run / "tester").is_dir()


def test_an_output_folder_that_can_t_be_written_to_is_found_before_models_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from astra_accel.jobs import train as run

    monkeypatch.setattr(run, "build_sampler", None)
    (tmp_path / "file").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "checkpoints").symlink_to("/proc")
    for folder in ("/proc/none/run", tmp_path / "file" / "run", tmp_path / "linked"):
        code = run.main(["--config", str(TINY_DPO), "--training.output_dir", str(folder)])
        assert code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: training.output_dir ")
        assert str(folder) in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "file", "linked"]
