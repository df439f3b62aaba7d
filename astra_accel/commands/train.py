"""`astra-accel train`."""

from __future__ import annotations

import argparse
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.launching import add_accelerate_config, start
from astra_accel.paths import expanded


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    train = add_command(
        commands,
        "train",
        _train,
        short="train a tester as a YAML file says",
        description="Train a tester as a YAML file says. Any field can be set by its section and name, lists and "
        "mappings as JSON; `null` is none. Mistakes are reported before any weights load.",
        usage="--config FILE [--accelerate-config NAME] [--resume CHECKPOINT|auto] [--SECTION.FIELD VALUE ...]",
        examples=[
            ("a run with another learning rate", "astra-accel train --config run.yaml --training.lr 1e-4"),
            ("on two CPU processes", "astra-accel train --config run.yaml --accelerate-config cpu_2"),
            ("on all GPUs", "astra-accel train --config run.yaml --accelerate-config multi_gpu"),
            (
                "resume a stopped run, or start one: the same command each time",
                "astra-accel train --config run.yaml --training.output_dir runs/one --resume auto",
            ),
        ],
        takes_fields=True,
    )
    train.add_argument(
        "--config",
        type=expanded,
        metavar="FILE",
        help="YAML file with the sections of a run; `astra-accel init` writes one",
    )
    train.add_argument(
        "--resume",
        type=expanded,
        metavar="CHECKPOINT",
        help="a checkpoint folder to resume from; auto: the newest in training.output_dir, if any",
    )
    add_accelerate_config(train)


def _train(known: argparse.Namespace, overrides: list[str]) -> int:
    from astra_accel.config import RunConfiguration, check_resume

    config = RunConfiguration.load(known.config, overrides)  # report mistakes before processes start
    check_resume(config.training, known.resume)
    job: list[str] = [] if known.config is None else ["--config", known.config]
    job += [] if known.resume is None else ["--resume", known.resume]
    return start("astra_accel.jobs.train", [*job, *overrides], known.accelerate_config)
