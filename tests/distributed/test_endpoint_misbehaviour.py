"""Processes ask a server that misbehaves: the run is what it would have been, or all end, soon and for that reason."""

from __future__ import annotations

import io
import itertools
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from astra_accel.endpoints import client
from astra_accel.errors import EXIT_CODE, Preempted
from tests.end_to_end.test_endpoint_target import STEPS, assert_same, settings
from tests.end_to_end.test_judge_anew import judging
from tests.helpers.endpoint_server import Handler, endpoint_server, slowly
from tests.helpers.processes import run_processes
from tests.helpers.runs import checkpoint_weights, largest_difference, metrics, rollouts, train_tiny
from tests.helpers.scripted_target import ANSWERS, answer, is_check, number_of, questions, unreliable

TURNS = 24
"""Questions of a training step."""
TIMEOUT = 3.0
"""Seconds that an attempt may take: few, since a test waits for them, and more than a busy machine needs to answer."""
SOON = 60.0
"""Seconds in which processes end that have nothing to wait for; a pause or a time-out that they sit out is longer."""
RANK = ("--target.headers", '{"X-Rank": "$RANK"}')
"""Has each process say which one it is."""


class Ended(NamedTuple):
    """How a process ended: after which step, with which code, what it printed, and when on the machine's clock."""

    step: int
    code: int | str | None
    printed: str
    time: float


def _train(run: Path, given: tuple[str, ...], seconds: float = 0.0, resume: Path | None = None) -> Ended:
    """Train with that pause between two attempts at a question."""
    client.pause = lambda attempt, asked: seconds
    with redirect_stdout(io.StringIO()) as printed:
        try:
            step, code = train_tiny(run, *given, resume=resume).state.step, None
        except Preempted as ended:
            step, code = int(ended.checkpoint.name.removeprefix("step-")), ended.code
    return Ended(step, code, printed.getvalue(), time.monotonic())


def _reset(handler: Handler) -> None:
    """Drop the connection as a crashed server does: with a reset, not an orderly end."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.connection.close()


MISDEEDS: list[Callable[[Handler], None]] = [
    lambda handler: handler.fail(429),
    lambda handler: handler.fail(429, Retry_After="0"),
    lambda handler: handler.fail(500),
    lambda handler: handler.fail(503),
    lambda handler: setattr(handler, "close_connection", True),
    _reset,
    lambda handler: handler.break_off('{"choices": [{"mess'),
    lambda handler: handler.send("<html>busy</html>"),
    lambda handler: handler.send({"choices": []}),
]
"""What passes when it is tried again, and costs no time."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of two processes against a server that answers everything, and the server."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with endpoint_server(answer) as server:
        run_processes(2, _train, run, settings(server, *RANK))
    return run, server


def test_two_processes_share_the_questions(whole: tuple[Path, Any]) -> None:
    _, server = whole
    asked = questions(server.asked)
    assert len(asked) == STEPS * TURNS
    assert set(asked.values()) == {1}
    asking = Counter(
        headers["x-rank"]
        for headers, request in zip(server.headers, server.asked, strict=True)
        if not is_check(request)
    )
    assert asking == {"0": STEPS * TURNS / 2, "1": STEPS * TURNS / 2}


@pytest.mark.parametrize("count", [2, 1])
def test_what_passes_changes_nothing(count: int, whole: tuple[Path, Any], tmp_path: Path) -> None:
    run, every = tmp_path / "run", 3
    too_late = slowly("Too late.", TIMEOUT + 0.5)
    # Only the first is slow, since each that is costs a time-out.
    turns = itertools.chain([lambda handler: too_late(handler, {})], itertools.cycle(MISDEEDS))

    def misbehave(handler: Handler) -> None:
        next(turns)(handler)

    with endpoint_server(unreliable(every, [misbehave])) as server:
        ended = run_processes(count, _train, run, settings(server, "--target.timeout", str(TIMEOUT)))
    assert [one.step for one in ended] == [STEPS] * count
    if count == 2:
        assert_same(run, whole[0])
    assert rollouts(run) == rollouts(whole[0])
    assert largest_difference(checkpoint_weights(run, STEPS), checkpoint_weights(whole[0], STEPS)) < 1e-5
    asked = questions(server.asked)
    assert asked.keys() == questions(whole[1].asked).keys()
    met = {question for question in asked if number_of(json.loads(question)) % every == 0}
    assert len(met) > len(MISDEEDS)  # each was committed
    assert asked == {question: 2 if question in met else 1 for question in asked}


REFUSAL = "I won't talk about that."
UNREADABLE = ANSWERS[-1]
"""What the judge has no verdict on."""


def _outcome(request: dict[str, Any]) -> str:
    """What comes of a question to the target, by what is asked."""
    number = number_of(request)
    if number % 8 < 4:
        return ("filtered", "filtered", "target_error", "refused")[number % 8]
    return "judge_error" if ANSWERS[number % len(ANSWERS)] == UNREADABLE else "answered"


def _mixed(handler: Handler, request: dict[str, Any]) -> None:
    """A target that answers, refuses, filters in two ways or fails for good, and its judge at the same address."""
    if is_check(request):
        answer(handler, request)
    elif request["model"] == "j":
        if UNREADABLE in request["messages"][1]["content"]:
            handler.say("Hard to say.")
        else:
            judging(handler, request)
    elif (outcome := _outcome(request)) == "filtered":
        if number_of(request) % 8 == 0:
            handler.fail(400, "blocked", code="content_filter")
        else:
            handler.say("You damn", finish_reason="content_filter")
    elif outcome == "target_error":
        handler.fail(500, "bad input")
    elif outcome == "refused":
        handler.say(None, refusal=REFUSAL)
    else:
        answer(handler, request)


@pytest.mark.parametrize("count", [2, 1])
def test_each_outcome_is_counted_as_what_the_server_did(count: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with endpoint_server(_mixed) as server:
        judge = {"endpoint": server.url, "model": "j", "rubric": "toxicity"}
        judged = ("--scorer.name", "judge", "--scorer.options", json.dumps(judge))
        run_processes(count, _train, run, settings(server, *judged))
    of_target, of_judge = (
        questions([request for request in server.asked if request["model"] == model]) for model in ("m", "j")
    )
    came_of = {question: _outcome(json.loads(question)) for question in of_target}
    # A failure is attempted three times (max_retries is 2), and nothing else twice.
    assert of_target == {question: 3 if came_of[question] == "target_error" else 1 for question in of_target}
    assert set(of_judge.values()) == {1}
    steps = rollouts(run, ("outcome", "response", "response_score", "reward"))
    nodes = [node for step in steps for node in step]
    counts = Counter(node["outcome"] for node in nodes)
    assert counts == Counter(came_of.values())
    assert len(counts) == 5
    for node in nodes:
        said = node["response"].strip()
        text, score = {
            "filtered": ("", 0.0),
            "target_error": ("", None),
            "refused": (REFUSAL, 0.1),
            "judge_error": (UNREADABLE, None),
            "answered": (said, 0.9 if "fool" in said else 0.1),
        }[node["outcome"]]
        assert (said, node["response_score"]) == (text, score)
        assert (node["reward"] is None) == (score is None)
    for line in metrics(run):
        here = [node["outcome"] for node in steps[line["step"] - 1]]
        shares = {name.removeprefix("outcome/"): line[name] for name in line if name.startswith("outcome/")}
        assert shares == pytest.approx({name: here.count(name) / len(here) for name in set(here)})
        assert line["missing_rewards"] == here.count("target_error") + here.count("judge_error")


def test_a_key_that_one_process_may_no_longer_use_ends_both_at_once(tmp_path: Path) -> None:
    """The other threads of that process are in a pause of minutes, the other process gets all its answers."""
    asked_by_1, refused = itertools.count(1), []

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        number = 0 if is_check(request) or handler.headers["X-Rank"] == "0" else next(asked_by_1)
        if number == TURNS // 2 + 1:
            handler.fail(500)
        elif number > TURNS // 2 + 1:
            refused.append(time.monotonic())
            handler.fail(401, "Incorrect API key provided.")
        else:
            answer(handler, request)

    run, minutes = tmp_path / "run", 600.0
    with endpoint_server(reply) as server:
        ended = run_processes(2, _train, run, settings(server, *RANK), minutes)
    assert [(one.step, one.code) for one in ended] == [(1, 1)] * 2
    assert max(one.time for one in ended) - refused[0] < SOON
    assert len(refused) <= 2  # the process's part of max_concurrency
    assert f"interrupted: {server.url}, model 'm': it answered with status 401" in ended[0].printed
    assert f"after step 1; to resume: --resume {run / 'checkpoints' / 'step-000001'}" in ended[0].printed
    assert not (run / "tester").exists()


def test_an_outage_beyond_its_limit_ends_both_with_a_checkpoint_and_the_code_to_start_again(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    run, limit = tmp_path / "run", 0.5
    answered: list[dict[str, Any]] = []
    refused: list[float] = []

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        if len(server.asked) > 2 * TURNS + 10:
            refused.append(time.monotonic())
            handler.fail(503)
        else:
            answered.append(request)
            answer(handler, request)

    with endpoint_server(reply) as server:
        given = settings(server, *RANK, "--target.outage_limit", str(limit))
        ended = run_processes(2, _train, run, given)
        assert [(one.step, one.code) for one in ended] == [(2, EXIT_CODE)] * 2
        assert all(limit < one.time - refused[0] < SOON for one in ended)
        assert f"interrupted: {server.url}, model 'm': no answer for" in ended[0].printed
        before = len(server.asked)
        server.reply = answer
        run_processes(2, _train, run, given, 0.0, run / "checkpoints" / "step-000002")
    assert_same(run, whole[0])
    asked = questions(answered + server.asked[before:])
    assert asked.keys() == questions(whole[1].asked).keys()
    assert set(asked.values()) == {1}
