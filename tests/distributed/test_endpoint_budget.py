"""Two processes ask an endpoint: within one budget and one limit, each question once, and they end together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from astra_accel.endpoints import client
from astra_accel.errors import Preempted
from tests.helpers.endpoint_server import Handler, endpoint_server
from tests.helpers.processes import run_processes
from tests.helpers.runs import rollouts, train_tiny
from tests.helpers.scripted_target import answer, is_check, number_of, questions

TURNS = 24
"""Questions of a training step."""


def _train(url: str, run: Path, more: list[str], resume: Path | None = None) -> tuple[int, int | str | None]:
    """Train against a server; the steps that were made, and the code that the run ended with."""
    client.pause = lambda attempt, asked: 0.0
    target = [
        "--target.path",
        "embedded",
        "--target.endpoint",
        url,
        "--target.model",
        "m",
        "--target.outage_limit",
        "0",
    ]
    own = ["--training.training_steps", "3", "--training.eval_steps", "null", "--prompts.test", "null"]
    own += ["--training.save_steps", "1", "--target.outage_limit", "0"]
    try:
        trainer = train_tiny(
            run, *target, "--target.outage_limit", "0", *own, "--training.save_steps", "1", *more, resume=resume
        )
    except Preempted as ended:
        return int(ended.checkpoint.name.removeprefix("step-")), ended.code
    return trainer.state.step, None


def test_a_budget_is_never_passed_and_all_end_in_order(tmp_path: Path) -> None:
    budget = 2 * TURNS + 7
    with endpoint_server(answer) as server:
        ended = run_processes(2, _train, server.url, tmp_path / "run", ["--budget.requests", str(budget)])
        assert ended == [(2, None)] * 2
        assert 2 * TURNS < len(server.asked) <= budget
        assert (tmp_path / "run" / "tester").is_dir()
        resume = tmp_path / "run" / "checkpoints" / "step-000002"
        run_processes(2, _train, server.url, tmp_path / "run", ["--budget.requests", "200"], resume)
        assert max(questions(server.asked).values()) == 1
    with endpoint_server(answer) as other:
        run_processes(1, _train, other.url, tmp_path / "alone", [])
    assert questions(server.asked).keys() == questions(other.asked).keys()
    assert rollouts(tmp_path / "run") == rollouts(tmp_path / "alone")


def judged(handler: Handler, request: dict[str, Any]) -> None:
    """Target and judge in one."""
    if request["model"] == "j" and not is_check(request):
        mark, _, _ = request["messages"][1]["content"].partition("\n")
        handler.say(f"So it is.\nVERDICT {mark} score: {number_of(request) % 2}")
    else:
        answer(handler, request)


@pytest.mark.parametrize("processes", [1, 2])
def test_launches_with_the_same_budget_never_ask_more_than_it_allows(processes: int, tmp_path: Path) -> None:
    run, budget = tmp_path / "run", 3 * TURNS + 9  # a step asks the target once a turn, and the judge twice
    with endpoint_server(judged) as server:
        options = json.dumps({"endpoint": server.url, "model": "j", "outage_limit": 0})
        scorer = ["--scorer.name", "judge", "--scorer.options", options]
        settings = [*scorer, "--budget.requests", str(budget)]
        assert run_processes(processes, _train, server.url, run, settings) == [(1, None)] * processes
        checkpoint = run / "checkpoints" / "step-000001"
        for _ in range(2):
            again = run_processes(processes, _train, server.url, run, settings, checkpoint)
            assert again == [(1, None)] * processes
        assert 3 * TURNS < len(server.asked) <= budget
        asked = {request["model"] for request in server.asked if is_check(request)}
        assert asked == {"m", "j"}
        assert max(questions(server.asked).values()) == 1


def test_an_error_that_one_process_meets_ends_all_of_them(tmp_path: Path) -> None:
    def reply(handler: Handler, request: dict) -> None:
        handler.fail(403, "not for you") if len(server.asked) > 40 else answer(handler, request)

    with endpoint_server(reply) as server:
        ended = run_processes(2, _train, server.url, tmp_path / "run", ["--target.max_concurrency", "2"])
        assert ended == [(1, 1)] * 2
        assert server.most_under_way <= 2
        assert len(server.asked) <= 40 + 2 + 2
    assert os.listdir(tmp_path / "run" / "journal")
