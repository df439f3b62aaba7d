"""Figures by goal and by category of the prompts.

Several prompts may have one goal, and several goals one category. A prompt without a goal, or without a category, is
left out of the figures by goal, or in a category of its own, None.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from astra_accel.evaluation.figures.bootstrap import finite_or_none
from astra_accel.evaluation.figures.metrics import GOALS_ATTACKED, success_rate
from astra_accel.evaluation.figures.missing import estimates_of
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.tries import Tries

SUCCESS = "attack_success"
BY_CATEGORY, BY_GOAL = "by_category", "by_goal"


def goal_figures(nodes: Nodes, name: str, threshold: float, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables by category and by goal, and the share of goals with a success; both empty if no prompt has a goal.

    Args:
        nodes: the evaluation's nodes.
        name: the column of scores.
        threshold: a response with at least this score is a success.
        options: see :func:`~astra_accel.evaluation.figures.bootstrap.estimate`.

    Returns:
        ``by_category`` and ``by_goal``; and the metrics by name.
    """
    if not any(goal is not None for goal in nodes.goals):
        return {}, {}
    goals, goal_E = _numbered(nodes.goals)
    attacked = success_rate(nodes.grouped(goal_E, len(goals)), name, threshold)
    tables = {
        BY_CATEGORY: by_category(nodes, name, threshold, **options),
        BY_GOAL: by_goal(nodes, name, threshold),
    }
    return tables, estimates_of({GOALS_ATTACKED: attacked}, len(goals), **options)


class Category(NamedTuple):
    """The prompts of a category.

    Attributes:
        counts: its name (``category``), and its numbers of goals and prompts.
        nodes: those of its prompts alone, in their order.
    """

    counts: dict[str, Any]
    nodes: Nodes

    @property
    def num_prompts(self) -> int:
        """The number of its prompts."""
        return int(self.counts["num_prompts"])


def categories_of(nodes: Nodes) -> list[Category]:
    """The categories, in the order of their first prompts; empty if no prompt has one."""
    if not _numbered(nodes.categories)[0]:
        return []
    found = []
    for category in dict.fromkeys(nodes.categories):
        here_E = np.array([own == category for own in nodes.categories])
        num_prompts = int(here_E.sum())
        goals = {goal for goal, here in zip(nodes.goals, here_E, strict=True) if here and goal is not None}
        counts = {"category": category, "num_goals": len(goals), "num_prompts": num_prompts}
        found.append(Category(counts, nodes.grouped(np.where(here_E, np.cumsum(here_E) - 1, -1), num_prompts)))
    return found


def by_category(nodes: Nodes, name: str, threshold: float, **options: Any) -> list[dict[str, Any]]:
    """Attack success in each category over its prompts, most first; empty if no prompt has a category."""
    found = [
        of_one.counts
        | estimates_of({SUCCESS: success_rate(of_one.nodes, name, threshold)}, of_one.num_prompts, **options)
        for of_one in categories_of(nodes)
    ]
    return sorted(found, key=lambda row: -row[SUCCESS]["value"])


def by_goal(nodes: Nodes, name: str, threshold: float) -> list[dict[str, Any]]:
    """How the tries for each goal went: those with most successes first, the hardest goal last."""
    goals, goal_E = _numbered(nodes.goals)
    tries = Tries.from_scores(nodes, name, threshold)
    goal_T, best_E = goal_E[tries.episode_T], nodes.largest(nodes.columns[name])
    found = []
    for number, goal in enumerate(goals):
        here_T, here_E = goal_T == number, goal_E == number
        found.append(
            {
                "goal": goal,
                "category": nodes.categories[int(here_E.argmax())],
                "num_prompts": int(here_E.sum()),
                "num_tries": int(here_T.sum()),
                "num_successful_tries": int(tries.succeeded_T[here_T].sum()),
                "num_undetermined_tries": int(tries.undetermined_T[here_T].sum()),
                "questions": int(tries.asked_T[here_T].sum()),
                "best_score": finite_or_none(float(best_E[here_E].max())),
            }
        )
    return sorted(found, key=lambda row: (-row["num_successful_tries"], -(row["best_score"] or 0.0)))


def _numbered(names: Sequence[Hashable | None]) -> tuple[list[Any], np.ndarray]:
    """The different names in order, and the number of each; -1 for None."""
    different = list(dict.fromkeys(name for name in names if name is not None))
    place = {name: number for number, name in enumerate(different)}
    return different, np.array([-1 if name is None else place[name] for name in names], dtype=int)
