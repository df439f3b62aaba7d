"""Novelty is the same on any number of processes, and in a run that is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_accel.methods.ast.rewards import EmbeddingNovelty, SelfBLEUNovelty
from tests.helpers.plain import reset_accelerate
from tests.helpers.processes import run_processes
from tests.helpers.runs import checkpoint_weights, largest_difference, rollouts
from tests.helpers.slots import train_slots

COLUMNS = ("probe", "reward", "response_score", "self_bleu_novelty", "embedding_novelty")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> None:
    reset_accelerate()


def _train(output_dir: Path, resume: Path | None = None) -> dict[str, Any]:
    """Four training steps of 20 probes each, which fill the reservoirs of 12 at once; what is in them at the end."""
    terms = [(0.5, SelfBLEUNovelty(12, seed=7)), (0.5, EmbeddingNovelty(reservoir_size=12, seed=7))]
    system = train_slots(
        output_dir,
        terms,
        resume,
        optimizer="sgd",  # Adam makes of a gradient that cancels out, but for rounding, a whole step
        lr=1.0,
        batch_size=4,
        num_episodes_per_experience=5,
        training_steps=4,
        save_steps=2,
    )
    return {name: state["reservoir"] for name, state in system.rollout_state().items()}


def _state(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step-{step:06d}" / "rollout_state.pt", weights_only=True)


@pytest.mark.slow
def test_the_same_reservoir_and_rewards_on_one_and_on_two_processes(tmp_path: Path) -> None:
    """Five episodes are no even number: the first process rolls out one more."""
    one, two = tmp_path / "1", tmp_path / "2"
    reservoirs = _train(one)
    assert run_processes(2, _train, two) == [reservoirs, reservoirs]
    for rows, others in zip(rollouts(one, COLUMNS), rollouts(two, COLUMNS), strict=True):
        assert [row["probe"] for row in rows] == [row["probe"] for row in others]
        for row, other in zip(rows, others, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
    for step in (2, 4):
        for name in ("self_bleu_novelty", "embedding_novelty"):
            assert _state(one, step)[name]["reservoir"] == _state(two, step)[name]["reservoir"]
        assert largest_difference(checkpoint_weights(one, step), checkpoint_weights(two, step)) < 1e-5
    # Rewards did depend on what was said before, and the weights on them.
    for name in ("self_bleu_novelty", "embedding_novelty"):
        assert {row[name] for row in rollouts(one, COLUMNS)[0]} == {1.0}
        assert len({row[name] for row in rollouts(one, COLUMNS)[3]}) > 5
    assert _state(one, 2)["self_bleu_novelty"] != _state(one, 4)["self_bleu_novelty"]
    assert largest_difference(checkpoint_weights(one, 2), checkpoint_weights(one, 4)) > 1e-2


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    """Rewards, reservoirs, their embeddings and weights, from the second of four steps on."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    _train(whole)
    reset_accelerate()
    _train(other, whole / "checkpoints" / "step-000002")
    assert rollouts(other, COLUMNS) == rollouts(whole, COLUMNS)[2:]
    assert largest_difference(checkpoint_weights(whole, 4), checkpoint_weights(other, 4)) == 0
    state, resumed = _state(whole, 4)["embedding_novelty"], _state(other, 4)["embedding_novelty"]
    assert resumed["reservoir"] == state["reservoir"]
    assert list(resumed["embeddings"]) == list(state["embeddings"])
    assert largest_difference(resumed["embeddings"], state["embeddings"]) == 0
    assert _state(whole, 4)["self_bleu_novelty"] == _state(other, 4)["self_bleu_novelty"]
