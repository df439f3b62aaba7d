"""`astra-accel judge`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.paths import user_path

JUDGED = "_judged"
"""What the name of the folder ends with."""


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    judge = add_command(
        commands,
        "judge",
        _judge,
        short="judge an evaluation again with other scorers, without asking the target",
        description="Let other scorers judge the conversations of an evaluation. The target is not asked again; "
        "existing verdicts stay. Writes a separate evaluation, to look at and to compare.",
        usage="RUN_OR_EVALUATION [--config FILE] [--output DIR] [--overwrite] --evaluation.scorers JSON",
        examples=[
            (
                "by an LLM as judge",
                "astra-accel judge runs/demo --evaluation.scorers \\\n"
                '  \'{"llm": {"name": "judge", "options": {"endpoint": "http://127.0.0.1:8000/v1", "model": "m"}}}\'',
            ),
            (
                "the untrained tester's conversations, by the same scorers of a file",
                "astra-accel judge runs/demo/evaluation_untrained --config judges.yaml",
            ),
        ],
        takes_fields=True,
    )
    judge.add_argument(
        "path", type=user_path, metavar="RUN_OR_EVALUATION", help="the folder of an evaluation, or a run with one"
    )
    judge.add_argument("--config", type=user_path, metavar="FILE", help="YAML file; left out, the run's own")
    judge.add_argument(
        "--output", type=user_path, metavar="DIR", help=f"where to write; left out, the same name with {JUDGED}"
    )
    judge.add_argument("--overwrite", action="store_true", help="start over, whatever the output folder holds")


def _judge(known: argparse.Namespace, overrides: list[str]) -> int:
    from astra_accel.config import RunConfiguration
    from astra_accel.errors import Interrupted
    from astra_accel.evaluation.display import show_metrics
    from astra_accel.evaluation.folder import find_evaluation
    from astra_accel.files.run_folder import CONFIG

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    evaluation = find_evaluation(known.path)
    run = known.path if evaluation != known.path else known.path.parent
    own = run / CONFIG
    config = RunConfiguration.load(known.config or (own if own.is_file() else None), overrides)
    output = known.output or evaluation.with_name(f"{evaluation.name}{JUDGED}")
    from astra_accel.jobs.judge import judge_anew

    try:
        metrics = judge_anew(evaluation, output, config, overwrite=known.overwrite)
    except Interrupted as interruption:
        print(f"interrupted: {interruption}", file=sys.stderr)
        return interruption.exit_code
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show_metrics(metrics, output)
    return 0
