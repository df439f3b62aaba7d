"""The log says how long processes waited for one another."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from astra_accel import AccelTrainer, TrainingConfiguration
from tests.helpers.plain import build_plain
from tests.helpers.processes import run_processes
from tests.helpers.runs import metrics

DELAY = 0.5


def _train_beside_a_slow_process(output_dir: Path) -> None:
    sampler, algorithm = build_plain()
    rollout = sampler.rollout

    def slow(seed: int) -> Any:
        if os.environ["RANK"] == "1":
            time.sleep(DELAY / 4)  # 4 of the 8 episodes
        return rollout(seed)

    sampler.rollout = slow
    config = TrainingConfiguration(output_dir=output_dir, batch_size=4, training_steps=2, sample_steps=None)
    AccelTrainer(config, sampler, algorithm).train()


@pytest.mark.slow
def test_one_slow_process_makes_the_other_wait(tmp_path: Path) -> None:
    """One of the two processes waits for the delay, so on average half of it is waited."""
    run_processes(2, _train_beside_a_slow_process, tmp_path)
    for line in metrics(tmp_path):
        whole = sum(value for name, value in line.items() if name.startswith("seconds/"))
        assert line["seconds/rollout"] > DELAY
        # What the update waits for comes on top.
        assert line["speed/wait_share"] * whole > 0.9 * DELAY / 2
        assert line["speed/wait_share"] < 1
        assert line["speed/tokens_per_second"] == pytest.approx(0)  # these episodes tell no tokens
