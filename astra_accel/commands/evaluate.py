"""`astra-accel evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.launching import add_accelerate_config, start
from astra_accel.paths import expanded


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        short="measure a trained tester on held-out prompts",
        description="Roll a trained tester out on the test prompts of its run, and write every node and figures with "
        "intervals. An interrupted evaluation continues where it was. Any field can be set by its section and name.",
        usage="RUN_OR_TESTER [--untrained] [--config FILE] [--output DIR] [--overwrite] [--accelerate-config NAME] "
        "[--SECTION.FIELD VALUE ...]",
        examples=[
            ("the tester of a run, to its folder evaluation/", "astra-accel evaluate runs/demo"),
            (
                "its tester as it was before training, to compare with",
                "astra-accel evaluate runs/demo --untrained",
            ),
            ("what counts as a success", "astra-accel evaluate runs/demo --evaluation.threshold 0.8"),
            (
                "on prompts of your own",
                "astra-accel evaluate runs/demo --prompts.test.source prompts.txt \\\n"
                "      --prompts.test.split train --output evaluations/own",
            ),
            (
                "a tester without its run",
                "astra-accel evaluate some/tester --config run.yaml --output evaluations/other",
            ),
        ],
        takes_fields=True,
    )
    evaluate.add_argument(
        "path", type=expanded, metavar="RUN_OR_TESTER", help="the output folder of a run, or the folder of a tester"
    )
    evaluate.add_argument("--untrained", action="store_true", help="the tester as it was before training")
    evaluate.add_argument(
        "--config", type=expanded, metavar="FILE", help="YAML file with the sections of a run; left out, the run's own"
    )
    evaluate.add_argument(
        "--output",
        type=expanded,
        metavar="DIR",
        help="where to write; left out, evaluation/ or evaluation_untrained/ there",
    )
    evaluate.add_argument("--overwrite", action="store_true", help="start over, whatever the output folder holds")
    add_accelerate_config(evaluate)


def _evaluate(known: argparse.Namespace, overrides: list[str]) -> int:
    from astra_accel.evaluation.tester import find_tester, load_configuration

    if not known.untrained:
        find_tester(Path(known.path))  # report mistakes before processes start
    load_configuration(Path(known.path), None if known.config is None else Path(known.config), overrides)
    job = [known.path, *(["--untrained"] if known.untrained else [])]
    job += [] if known.config is None else ["--config", known.config]
    job += [] if known.output is None else ["--output", known.output]
    job += ["--overwrite"] if known.overwrite else []
    return start("astra_accel.jobs.evaluate", [*job, *overrides], known.accelerate_config)
