"""What one process meets, all of them learn; nobody waits for ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from astra_accel import DPO, AccelTrainer, ASTSampler, HFASTSystem, TrainingConfiguration
from astra_accel.core.scorer import ScorerError
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.collectives import RankError
from tests.helpers.plain import build_plain
from tests.helpers.processes import ProcessFailure, run_processes


def _rank() -> int:
    return int(os.environ["RANK"])


def _train_with_failing_rollout(output_dir: Path) -> str:
    sampler, algorithm = build_plain()
    rollout = sampler.rollout

    def failing(seed: int) -> Any:
        if _rank() == 1:
            raise ScorerError("the scorer of process 1 is gone")
        return rollout(seed)

    sampler.rollout = failing
    config = TrainingConfiguration(output_dir=output_dir, batch_size=4, training_steps=2, sample_steps=None)
    with pytest.raises(ScorerError if _rank() == 1 else RankError) as caught:
        AccelTrainer(config, sampler, algorithm).train()
    return str(caught.value)


def test_a_process_that_raises_in_a_rollout_ends_all_of_them(tmp_path: Path) -> None:
    """The one that failed raises its own error, the other one that names it, at once."""
    other, own = run_processes(2, _train_with_failing_rollout, tmp_path)
    assert own == "the scorer of process 1 is gone"
    assert other == "process 1 failed with ScorerError: the scorer of process 1 is gone"


def _train_with_failing_memory(output_dir: Path) -> str:
    sampler, algorithm = build_plain()

    def observe(graphs: Any, experience: int) -> None:
        assert len(graphs) == 8
        if _rank() == 1:
            raise ConnectionError("the index of earlier probes is gone")

    sampler.system.observe = observe
    config = TrainingConfiguration(output_dir=output_dir, batch_size=4, training_steps=2, sample_steps=None)
    with pytest.raises(ConnectionError if _rank() == 1 else RankError) as caught:
        AccelTrainer(config, sampler, algorithm).train()
    return str(caught.value)


def test_a_process_whose_system_fails_to_take_note_of_an_experience_ends_all_of_them(tmp_path: Path) -> None:
    other, own = run_processes(2, _train_with_failing_memory, tmp_path)
    assert own == "the index of earlier probes is gone"
    assert other == "process 1 failed with ConnectionError: the index of earlier probes is gone"


def _train_with_nan(output_dir: Path) -> list[str]:
    sampler, algorithm = build_plain()
    step = algorithm.step

    def poisoned(batch: Any) -> Any:
        loss, logs = step(batch)
        return (loss * float("nan") if _rank() == 1 else loss), logs

    algorithm.step = poisoned
    before = [parameter.detach().clone() for parameter in sampler.system.parameters()]
    config = TrainingConfiguration(output_dir=output_dir, batch_size=4, training_steps=2, sample_steps=None)
    with pytest.raises(RuntimeError, match="update 1 has loss nan") as caught:
        AccelTrainer(config, sampler, algorithm).train()
    after = list(sampler.system.parameters())
    unchanged = all(bool((a == b).all()) for a, b in zip(before, after, strict=True))
    return [type(caught.value).__name__, str(unchanged)]


def test_a_loss_that_is_not_finite_on_one_process_stops_all_before_the_update(tmp_path: Path) -> None:
    assert run_processes(2, _train_with_nan, tmp_path) == [["NonFiniteError", "True"]] * 2
    saved = sorted(path.name for path in (tmp_path / "non_finite").iterdir())
    assert saved == ["update-000001-process-0.json", "update-000001-process-1.json"]


def _train_with_overflow(output_dir: Path) -> str:
    """The tester's weights are nan in the second rollout of one process."""
    system = HFASTSystem("tiny", "tiny", lora=None)
    sampler = ASTSampler(system, ["Good morning.", "It rains."], tree_width=2, tree_depth=1)

    def spoil(graphs: Any, experience: int) -> None:
        assert experience == 0
        if _rank() == 1:
            with torch.no_grad():
                system.tester.lm_head.weight.fill_(float("nan"))

    system.observe = spoil
    algorithm = DPO(system)
    algorithm.flatten = lambda graph: []  # no update, whose gradients would be nan everywhere
    config = TrainingConfiguration(
        output_dir=output_dir, batch_size=2, training_steps=4, num_episodes_per_experience=4, sample_steps=None
    )
    with pytest.raises(RuntimeError) as caught:
        AccelTrainer(config, sampler, algorithm).train()
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.slow
def test_logits_that_are_not_finite_end_all_processes(tmp_path: Path) -> None:
    what = "training step 2: the tester's logits are not finite (nan or inf) in turn 1 of a rollout: its weights"
    other, own = run_processes(2, _train_with_overflow, tmp_path)
    assert own.startswith(f"NonFiniteError: {what}")
    assert other == f"RankError: process 1 failed with {own}"


def _indivisible() -> None:
    make_accelerator(TrainingConfiguration(batch_size=3))


def test_a_batch_that_processes_cannot_share_is_an_error_before_anything_loads() -> None:
    with pytest.raises(ProcessFailure, match=r"training\.batch_size is 3.*expected a multiple of 2"):
        run_processes(2, _indivisible)


def _save_on_full_disk(output_dir: Path) -> str:
    from astra_accel.training.checkpoint import save

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    save.save_file = full
    sampler, algorithm = build_plain()
    config = TrainingConfiguration(
        output_dir=output_dir, batch_size=4, training_steps=1, save_steps=1, sample_steps=None
    )
    with pytest.raises(OSError if _rank() == 0 else RankError, match="No space left on device"):
        AccelTrainer(config, sampler, algorithm).train()
    return "both"


@pytest.mark.slow
def test_a_disk_that_fills_while_the_main_process_saves_ends_all_of_them(tmp_path: Path) -> None:
    """Long before an exchange would give the main process up, after ``training.timeout``."""
    assert run_processes(2, _save_on_full_disk, tmp_path) == ["both"] * 2
    assert list((tmp_path / "checkpoints").iterdir()) == []
