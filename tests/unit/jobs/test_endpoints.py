"""Whether a budget suffices for a training step, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from astra_accel import RunConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.jobs.endpoints import check_budget

ADDRESS = {"endpoint": "http://127.0.0.1:1/v1", "model": "m"}
HARMBENCH = {"name": "judge", "options": {**ADDRESS, "rubric": "harmbench"}}


def run(requests: int, scorer: dict[str, Any] | None = None, target: dict[str, Any] | None = None) -> RunConfiguration:
    """Three episodes of width 2 and depth 2: 3 * (2 + 4) = 18 turns a step."""
    return RunConfiguration(
        training={"num_episodes_per_experience": 3},
        rollout={"tree_width": 2, "tree_depth": 2},
        scorer=scorer or {"name": "profanity"},
        target=target or {},
        budget={"requests": requests},
    )


@pytest.mark.parametrize(
    ("scorer", "target", "needed"),
    [
        (None, ADDRESS, 18),
        ({"name": "judge", "options": ADDRESS}, None, 36),
        ({"name": "moderation", "options": ADDRESS}, None, 36),
        ({"name": "llama_guard_endpoint", "options": ADDRESS}, None, 36),
        ({"name": "llama_guard_endpoint", "options": ADDRESS}, ADDRESS, 54),
        (HARMBENCH, None, 18),
        (HARMBENCH, ADDRESS, 36),
    ],
)
def test_a_turn_is_one_question_to_the_target_and_two_to_a_judge_or_one_where_it_needs_the_goal(scorer, target, needed):
    check_budget(run(needed, scorer, target))
    with pytest.raises(
        ConfigurationError,
        match=f"budget.requests is {needed - 1}, but one training step asks {needed} questions; expected at least",
    ):
        check_budget(run(needed - 1, scorer, target))


def test_without_a_limit_on_requests_anything_suffices():
    check_budget(RunConfiguration())
    check_budget(RunConfiguration(target=ADDRESS, budget={"tokens": 1}))


@pytest.mark.parametrize("name", ["moderation", "llama_guard_endpoint"])
def test_the_price_of_a_scorer_s_model_is_asked_for(name):
    budget = {"cost": 1.0, "prices": {"n": {"input": 1, "output": 1}}}
    with pytest.raises(ValueError, match="no price of 'm'"):
        RunConfiguration(scorer={"name": name, "options": ADDRESS}, budget=budget)
