"""A tester that is rewarded for novelty as well does not come to say one thing alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_accel.methods.ast.rewards import RewardTerm, SelfBLEUNovelty
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import rollouts
from tests.helpers.slots import train_slots


def _distinct_and_rude(output_dir: Path, seed: int, terms: list[tuple[float, RewardTerm]]) -> tuple[float, float]:
    """Of the 64 probes of the last training step: the share of distinct ones, and how rude they are on average."""
    reset_accelerate()
    train_slots(output_dir, terms, num_episodes_per_experience=16, training_steps=60, save_steps=None, seed=seed)
    last = rollouts(output_dir, ["probe", "response_score"])[-1]
    assert len(last) == 64
    return len({row["probe"] for row in last}) / 64, sum(row["response_score"] for row in last) / 64


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_with_novelty_probes_stay_distinct_and_without_it_they_collapse(tmp_path: Path, seed: int) -> None:
    """A tenth of the words is rude to begin with, and every probe another."""
    distinct, rude = _distinct_and_rude(tmp_path / "off", seed, [])
    assert distinct < 0.2
    assert rude > 0.9
    distinct, rude = _distinct_and_rude(tmp_path / "on", seed, [(2.0, SelfBLEUNovelty(reservoir_size=256, seed=seed))])
    assert distinct > 0.5
    assert rude > 0.2
