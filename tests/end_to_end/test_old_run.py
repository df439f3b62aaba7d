"""A run that was written before the package's files were rearranged is reported, evaluated and resumed.

Its folder is ``tests/data/old_run.tar.gz``: two training steps of DPO, with a checkpoint at each, a replay and the
novelty reward, so that examples and conversations are in the checkpoints too. The code of commit ec81ef5 wrote it, the
last one before files moved. In a worktree of that commit, named in PYTHONPATH:

    python examples/train.py --config examples/configs/tiny_dpo.yaml --training.output_dir old_run \\
        --training.training_steps 2 --training.save_steps 1 --training.eval_steps 2 --training.replay.size 10 \\
        --training.replay.share 0.6 --reward.self_bleu_novelty_weight 0.1 --lora.r 2
    tar -czf old_run.tar.gz old_run

Its models are built in code, so it names no place of the machine.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from astra_accel.cli import main
from astra_accel.config import AUTO
from astra_accel.evaluation.folder import EvaluationFolder
from tests.helpers.runs import (
    ROOT,
    checkpoint_weights,
    largest_difference,
    rollouts,
    timeless,
    train_tiny,
)

PRINTED = {"naturalness/mean": -4.5577, "response_score/mean": 0.0405, "response_score/max": 0.0471}
"""On the test prompts at the end, by the old code; of the untrained tester, -4.5499, 0.0405 and 0.0469."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old run."""
    with tarfile.open(ROOT / "tests" / "data" / "old_run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def test_it_is_reported(old: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(old), "--output", str(page)]) == 0
    assert rollouts(old)[0][0]["context"] in page.read_text(encoding="utf-8")
    summary = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "training steps: 2 of 2\n- updates: 5\n" in summary
    worst = max(row["response_score"] for step in rollouts(old, ["response_score"]) for row in step)
    assert f"worst score {worst:.4f}" in summary


def test_it_is_evaluated_with_the_figures_that_were_printed(old: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    assert main(["evaluate", str(old), "--output", str(output), "--evaluation.num_resamples", "50"]) == 0
    found = EvaluationFolder(output).metrics()["metrics"]
    assert {name: found[name]["value"] for name in PRINTED} == pytest.approx(PRINTED, abs=6e-5)


def test_it_is_resumed_and_does_what_it_did(old: Path, tmp_path: Path) -> None:
    """The second step, with the optimizer, replay, reservoir and random numbers of the first one's checkpoint."""
    again = tmp_path / "again"
    train_tiny(again, config=old / "config.yaml", resume=old / "checkpoints" / "step-000001")
    assert rollouts(again) == rollouts(old)[1:]
    before = [line for line in timeless(old) if line["step"] == 2]
    assert before[0]["replay/drawn"] > 0
    for line, expected in zip(timeless(again), before, strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)
    weights = checkpoint_weights(old, 2)
    assert largest_difference(checkpoint_weights(again, 2), weights) < 1e-5
    assert largest_difference(checkpoint_weights(old, 1), weights) > 1e-4


def test_it_goes_on_in_its_own_folder(old: Path) -> None:
    before = timeless(old)
    train_tiny(old, "--training.training_steps", "3", config=old / "config.yaml", resume=AUTO)
    assert timeless(old)[: len(before)] == before
    assert [(line["step"], line["update"]) for line in timeless(old)[len(before) :]] == [(3, 6), (3, 7), (3, 8)]
    assert len(rollouts(old)) == 3
