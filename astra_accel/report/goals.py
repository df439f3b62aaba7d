"""The report's tables by category and by goal of the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.evaluation.display import category_name, details_of, number, value_text
from astra_accel.evaluation.figures.goals import BY_CATEGORY, BY_GOAL, SUCCESS
from astra_accel.files.text import shortened
from astra_accel.report.collect import Run

MAX_GOAL = 300

Rows = list[tuple[str, list[tuple[str, str]]]]
"""For each row its name, and for each run a value and details of it."""


def category_rows(runs: Sequence[Run]) -> Rows:
    """Attack success by category, most first, with its interval and the number of prompts."""

    def cell(row: Mapping[str, Any]) -> tuple[str, str]:
        prompts = _counted(row["num_prompts"], "prompt")
        return value_text(row[SUCCESS]), "; ".join(filter(None, (details_of(row[SUCCESS]), prompts)))

    return _rows(runs, BY_CATEGORY, lambda row: category_name(row["category"]), cell)


def goal_rows(runs: Sequence[Run]) -> Rows:
    """How many tries for each goal succeeded, the hardest goal last, with the questions and the best score."""

    def cell(row: Mapping[str, Any]) -> tuple[str, str]:
        least = row["num_successful_tries"]
        most = least + row["num_undetermined_tries"]
        succeeded = str(least) if least == most else f"{least} to {most}"
        questions = _counted(row["questions"], "question")
        return f"{succeeded} of {row['num_tries']}", f"{questions}; best score {number(row['best_score'])}"

    return _rows(runs, BY_GOAL, lambda row: row["goal"], cell)


def _rows(runs: Sequence[Run], table: str, name: Any, cell: Any) -> Rows:
    by_run = [{name(row): cell(row) for row in (run.figures or {}).get(table, [])} for run in runs]
    names = dict.fromkeys(name for of_run in by_run for name in of_run)
    return [(shortened(name, MAX_GOAL), [of_run.get(name, ("", "")) for of_run in by_run]) for name in names]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
