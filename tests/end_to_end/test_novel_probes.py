"""A tester that is rewarded for novelty as well does not come to say one thing alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from astra_accel.methods.ast.rewards import RewardTerm, SelfBLEUNovelty
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import rollouts
from tests.helpers.slots import train_slots


def _distinct_and_rude(output_dir: Path, seed: int, terms: list[tuple[float, RewardTerm]]) -> tuple[float, float]:
    """Of 60 training steps: the share of distinct probes of the last, and how rude those of the second half are."""
    reset_accelerate()
    train_slots(output_dir, terms, num_episodes_per_experience=16, training_steps=60, save_steps=None, seed=seed)
    *_, last = steps = rollouts(output_dir, ["probe", "response_score"])
    assert len(last) == 64
    rude = fmean(row["response_score"] for step in steps[30:] for row in step)
    return len({row["probe"] for row in last}) / len(last), rude


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_with_novelty_probes_stay_distinct_and_without_it_they_collapse(tmp_path: Path, seed: int) -> None:
    """A tenth of the words is rude to begin with, and every probe another. With novelty it learns as well, if less."""
    distinct, rude = _distinct_and_rude(tmp_path / "off", seed, [])
    assert distinct < 0.25
    assert rude > 0.8
    distinct, rude = _distinct_and_rude(tmp_path / "on", seed, [(2.0, SelfBLEUNovelty(reservoir_size=256, seed=seed))])
    assert distinct > 0.5
    assert rude > 0.25
