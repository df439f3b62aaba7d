"""A run of the plain system, as a script, in which process 1 meets a fault in the third experience.

accelerate launch tests/helpers/unreliable.py FOLDER none|raise|die|hang TIMEOUT [KIND [STEPS [async]]]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from astra_accel import AccelTrainer, TrainingConfiguration
from tests.helpers.launches import make_launch
from tests.helpers.plain import build_plain

EPISODES = 8


def main(folder: str, fault: str, timeout: str, kind: str = "ddp", steps: str = "6", saving: str = "") -> None:
    sampler, algorithm = build_plain()
    config = TrainingConfiguration(
        output_dir=Path(folder),
        batch_size=4,
        training_steps=int(steps),
        num_episodes_per_experience=EPISODES,
        save_steps=1,
        sample_steps=None,
        timeout=float(timeout),
        async_save=saving == "async",
    )
    step, rollout, num_rollouts, failing = algorithm.step, sampler.rollout, 0, False

    def unreliable(seed: int) -> Any:
        nonlocal num_rollouts, failing
        num_rollouts += 1
        if os.environ["RANK"] == "1" and num_rollouts > 2 * EPISODES // int(os.environ["WORLD_SIZE"]):
            if fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hang":
                time.sleep(3600)
            # In an update, where the other process waits for gradients.
            failing = fault == "raise"
        return rollout(seed)

    def stepping(batch: Any) -> Any:
        if failing:
            raise ValueError("process 1 can't compute its loss")
        return step(batch)

    sampler.rollout, algorithm.step = unreliable, stepping
    AccelTrainer(config, sampler, algorithm, accelerator=make_launch(kind, config)).train("auto")


if __name__ == "__main__":
    main(*sys.argv[1:])
