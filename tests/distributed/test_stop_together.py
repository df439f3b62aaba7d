"""Processes that stop, and continue, together."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from astra_accel import AccelTrainer, Preempted, TrainingConfiguration
from astra_accel.training.checkpoint import verify
from tests.helpers.plain import build_plain, reset_accelerate
from tests.helpers.processes import run_processes
from tests.helpers.runs import largest_difference, metrics, train_plain


def _train_until_signalled(output_dir: Path) -> tuple[str, int, bool]:
    """Process 1 gets a signal in the second training step's rollouts."""
    config = TrainingConfiguration(
        output_dir=output_dir, lr=0.05, batch_size=4, training_steps=6, sample_steps=None, save_steps=None
    )
    sampler, algorithm = build_plain()
    rollout = sampler.rollout
    episodes = itertools.count()

    def signalled(seed: int) -> Any:
        if os.environ["RANK"] == "1" and next(episodes) == config.num_episodes_per_experience // 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return rollout(seed)

    sampler.rollout = signalled
    trainer = AccelTrainer(config, sampler, algorithm)
    with pytest.raises(Preempted) as caught:
        trainer.train()
    put_back = signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    return caught.value.checkpoint.name, trainer.state.step, put_back


def _resume_automatically(output_dir: Path) -> Any:
    if os.environ["RANK"] == "1":

        def blind(_: Path) -> Any:
            raise AssertionError("process 1 looked for itself")

        verify.named_checkpoints = blind
    return train_plain(output_dir, "auto", save_steps=None)


def _evaluate_after_training(output_dir: Path) -> dict[str, float]:
    config = TrainingConfiguration(
        output_dir=output_dir, batch_size=4, training_steps=1, sample_steps=None, log_with=["tensorboard"]
    )
    trainer = AccelTrainer(config, *build_plain())
    trainer.train()
    return trainer.evaluate([0, 1, 2])


def test_once_trackers_are_ended_the_processes_can_still_evaluate(tmp_path: Path) -> None:
    one, other = run_processes(2, _evaluate_after_training, tmp_path / "run")
    assert one == other
    assert "reward/mean" in one


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_all_go_on_from_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_processes(2, _train_until_signalled, run) == [("step-000002", 2, True)] * 2
    assert {line["step"] for line in metrics(run)} == {1, 2}
    assert not (run / "tester").exists()

    resumed = run_processes(2, _resume_automatically, run)

    reset_accelerate()
    whole = train_plain(tmp_path / "whole", save_steps=None)
    for weights in resumed:
        assert largest_difference(weights, whole) < 1e-5
    assert {line["step"] for line in metrics(run)} == {1, 2, 3, 4, 5, 6}
