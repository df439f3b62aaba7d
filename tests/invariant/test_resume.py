"""A run that is taken up again ends where the uninterrupted one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.plain import reset_accelerate
from tests.helpers.processes import run_processes
from tests.helpers.runs import (
    ROOT,
    checkpoint_weights,
    largest_difference,
    rollouts,
    timeless,
    train_plain,
    train_tiny,
)


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    reset_accelerate()


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Six training steps with warm-up and decay, and again from the third, in another folder and in its own."""
    schedule = ("--training.lr_scheduler", "cosine", "--training.warmup_steps", "2")
    whole, other = tmp_path / "whole", tmp_path / "other"
    train_tiny(whole, *schedule)
    middle = whole / "checkpoints" / "step-000003"
    train_tiny(other, *schedule, resume=middle)

    final = checkpoint_weights(whole, 6)
    resumed = checkpoint_weights(other, 6)
    assert all(bool((final[name] == resumed[name]).all()) for name in final)
    assert largest_difference(final, checkpoint_weights(whole, 3)) > 0
    assert rollouts(other) == rollouts(whole)[3:]

    before = timeless(whole)
    train_tiny(whole, *schedule, resume=middle)
    again = checkpoint_weights(whole, 6)
    assert all(bool((final[name] == again[name]).all()) for name in final)
    # The lines after the checkpoint are written anew and not twice, and say the same but for the time it took.
    assert timeless(whole) == before


def test_a_value_head_resumes_with_its_tester(tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    config = ROOT / "examples" / "configs" / "tiny_ppo.yaml"
    short = ("--training.training_steps", "2", "--training.save_steps", "1")
    train_tiny(whole, *short, config=config)
    train_tiny(other, *short, config=config, resume=whole / "checkpoints" / "step-000001")
    final, resumed = checkpoint_weights(whole, 2), checkpoint_weights(other, 2)
    assert final["value_head.weight"].abs().max() > 0
    assert all(bool((final[name] == resumed[name]).all()) for name in final)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_every_optimizer_resumes_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    """The optimizer's state is all there: from the second of four steps, the same weights."""
    settings = {"optimizer": optimizer, "training_steps": 4, "save_steps": 2}
    whole = train_plain(tmp_path / "whole", **settings)
    reset_accelerate()
    resumed = train_plain(tmp_path / "other", tmp_path / "whole" / "checkpoints" / "step-000002", **settings)
    assert all(bool((whole[name] == resumed[name]).all()) for name in whole)


def _resume_plain(output_dir: Path, checkpoint: Path) -> dict:
    return train_plain(output_dir, checkpoint, save_steps=3)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """One process, then two from its middle; and the other way round."""
    whole = train_plain(tmp_path / "1", save_steps=3)
    middle = tmp_path / "1" / "checkpoints" / "step-000003"
    for weights in run_processes(2, _resume_plain, tmp_path / "1-2", middle):
        assert largest_difference(weights, whole) < 1e-5
    run_processes(2, _save_plain, tmp_path / "2")
    (weights,) = run_processes(1, _resume_plain, tmp_path / "2-1", tmp_path / "2" / "checkpoints" / "step-000003")
    assert largest_difference(weights, whole) < 1e-5


def _save_plain(output_dir: Path) -> None:
    train_plain(output_dir, save_steps=3)
