"""`astra-accel compare`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.paths import user_path


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        short="how the figures of two evaluations on the same prompts differ",
        description="How the figures of two evaluations on the same prompts differ, with paired intervals: both are "
        "drawn on the same prompts, so that how hard a prompt is cancels out.",
        examples=[
            ("what training has brought", "astra-accel compare runs/demo/evaluation_untrained runs/demo"),
            ("two runs that were evaluated", "astra-accel compare runs/demo runs/other"),
            (
                "with another threshold, and all figures to a file",
                "astra-accel compare runs/demo runs/other --threshold 0.8 --output differences.json",
            ),
        ],
        prints_result=True,
    )
    for name in ("first", "second"):
        compare.add_argument(name, type=user_path, help="the folder of an evaluation, or a run with one in evaluation/")
    compare.add_argument("--threshold", type=float, help="a score from which on a response is a success")
    compare.add_argument("--output", type=user_path, metavar="FILE", help="a JSON file to write all figures to")


def _compare(known: argparse.Namespace, _: list[str]) -> int:
    from astra_accel.evaluation.compare import compare
    from astra_accel.evaluation.display import show_comparison
    from astra_accel.evaluation.folder import find_evaluation
    from astra_accel.evaluation.verdict import verdict
    from astra_accel.files.folders import check_file_writable

    if known.output is not None:
        check_file_writable(known.output, "--output")
    comparison = compare(find_evaluation(known.first), find_evaluation(known.second), threshold=known.threshold)
    show_comparison(comparison)
    sentence = verdict(comparison)
    if sentence is not None:
        print(sentence)
    if known.output is not None:
        known.output.write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    return 0
