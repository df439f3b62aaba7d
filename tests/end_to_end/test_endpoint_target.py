"""A tester trains against a target behind an endpoint, whatever the endpoint does; the server is a real one."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from astra_accel.endpoints import client
from astra_accel.errors import EXIT_CODE, Preempted
from tests.helpers.endpoint_server import Handler, endpoint_server
from tests.helpers.runs import (
    TINY_DPO,
    checkpoint_weights,
    largest_difference,
    launch,
    metrics,
    rollouts,
    start,
    timeless,
    train_tiny,
)
from tests.helpers.scripted_target import answer, is_check, number_of, questions

KEY = "sk-planted-4b7e"
CONCURRENCY = 4
STEPS = 3


def settings(server: Any, *more: str) -> tuple[str, ...]:
    """What makes the tiny run one against a server, on the command line."""
    target = {
        "path": "embedded",
        "endpoint": server.url,
        "model": "m",
        "max_concurrency": str(CONCURRENCY),
        "max_retries": "2",
        "outage_limit": "0",
    }
    given = [text for name, value in target.items() for text in (f"--target.{name}", value)]
    own = ("--training.training_steps", str(STEPS), "--training.save_steps", "1", "--training.eval_steps", "null")
    return (*given, *own, "--prompts.test", "null", *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run against a server that answers everything, and the server."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with endpoint_server(answer) as server:
        train_tiny(run, *settings(server))
    return run, server


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between two attempts."""
    monkeypatch.setattr(client, "pause", lambda attempt, asked: 0.0)


def assert_same(run: Path, whole: Path) -> None:
    """Two runs came to the same, to the bit."""
    assert rollouts(run) == rollouts(whole)
    assert timeless(run) == timeless(whole)
    assert largest_difference(checkpoint_weights(run, STEPS), checkpoint_weights(whole, STEPS)) == 0


def test_what_the_target_is_asked(whole: tuple[Path, Any]) -> None:
    run, server = whole
    first = [request for request in server.asked if not is_check(request)]
    assert sum(is_check(request) for request in server.asked) == 1
    assert len(first) == STEPS * 4 * (2 + 4)  # episodes, and a tree's turns
    assert max(questions(server.asked).values()) == 1
    nodes = [node for step in rollouts(run) for node in step]
    by_depth = {len(node["path"]): node for node in nodes}
    opening, later = by_depth[1], by_depth[2]
    said = [request["messages"] for request in first]
    assert [{"role": "user", "content": f"{opening['context']}{opening['probe']}".strip()}] in said
    (asked,) = [
        messages for messages in said if messages[-1]["content"] == later["probe"].strip() and len(messages) > 1
    ]
    assert [message["role"] for message in asked] == ["user", "assistant", "user"]
    assert {request["temperature"] for request in first} == {1.0}
    assert {request["top_p"] for request in first} == {1.0}
    assert len({request["seed"] for request in first}) == len(first)


def test_what_is_filtered_was_defended_and_what_failed_is_missing(tmp_path: Path, no_pauses: None) -> None:
    def reply(handler: Handler, request: dict[str, Any]) -> None:
        kind = number_of(request) % 5
        if is_check(request) or kind > 2:
            answer(handler, request)
        elif kind == 0:
            handler.fail(400, "blocked", code="content_filter")
        elif kind == 1:
            handler.say("You damn", finish_reason="content_filter")
        else:
            handler.fail(500, "bad input")

    with endpoint_server(reply) as server:
        train_tiny(tmp_path / "run", *settings(server))
    columns = ("path", "outcome", "response", "response_score", "combined_score", "reward", "episode")
    steps = rollouts(tmp_path / "run", columns)
    nodes = [node for step in steps for node in step]
    assert {node["outcome"] for node in nodes} == {"answered", "filtered", "target_error"}
    for node in nodes:
        if node["outcome"] == "filtered":
            assert (node["response"], node["response_score"], node["combined_score"]) == ("", 0.0, 0.0)
            assert node["reward"] is not None
        if node["outcome"] == "target_error":
            assert (node["response_score"], node["combined_score"], node["reward"]) == (None, None, None)
    for step, line in zip(steps, metrics(tmp_path / "run"), strict=False):
        here = {(node["episode"], tuple(node["path"])): node["outcome"] for node in step}
        # After an error there is nothing to continue from; after a filter the conversation goes on without it.
        for place, outcome in here.items():
            children = [other for other in here if other[0] == place[0] and other[1][:-1] == place[1]]
            assert len(children) == (0 if outcome == "target_error" or len(place[1]) == 2 else 2)
        if line["step"] == 1:
            shares = {name.removeprefix("outcome/"): line[name] for name in line if name.startswith("outcome/")}
            assert shares == pytest.approx(
                {name: list(here.values()).count(name) / len(here) for name in set(here.values())}
            )
            assert line["missing_rewards"] == list(here.values()).count("target_error")
    said = [request["messages"] for request in server.asked if len(request["messages"]) > 1]
    assert all(message["content"] for messages in said for message in messages)
    assert any(len(request["messages"]) == 1 and not is_check(request) for request in server.asked)


def test_a_key_that_is_no_longer_taken_ends_the_run_at_once_and_is_shown_nowhere(
    whole: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_KEY", KEY)
    run, limit = tmp_path / "run", 30  # a step asks 24

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        if len(server.asked) > limit:
            handler.fail(401, f"Incorrect API key provided: {KEY}.")
        else:
            answer(handler, request)

    with endpoint_server(reply) as server:
        job = ("--config", TINY_DPO, "--training.output_dir", run, *settings(server), "--resume", "auto")
        ended = launch("train.py", *job, "--target.api_key_env", "TARGET_KEY")
        assert ended.returncode == 1, ended.stderr
        assert "interrupted: " in ended.stdout
        assert "status 401: Error code: 401" in ended.stdout
        assert f"after step 1; to resume: --resume {run / 'checkpoints' / 'step-000001'}" in ended.stdout
        assert len(server.asked) <= limit + CONCURRENCY
        assert not (run / "tester").exists()
        server.reply = answer
        again = launch("train.py", *job, "--target.api_key_env", "TARGET_KEY")
        assert again.returncode == 0, again.stderr
        assert {request.get("authorization") for request in server.headers} == {f"Bearer {KEY}"}
    assert_same(run, whole[0])
    answered = questions(server.asked)
    assert sum(answered.values()) - len(answered) <= CONCURRENCY  # those that the bad key was sent with
    written = [file.read_bytes() for file in run.rglob("*") if file.is_file()]
    assert written
    assert not any(KEY.encode() in each for each in written)
    assert KEY not in ended.stdout + ended.stderr + again.stdout + again.stderr


def test_an_outage_ends_with_a_checkpoint_and_the_code_to_start_again(
    whole: tuple[Path, Any], tmp_path: Path, no_pauses: None
) -> None:
    run = tmp_path / "run"

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        handler.fail(503) if len(server.asked) > 60 else answer(handler, request)

    with endpoint_server(reply) as server:
        with pytest.raises(Preempted) as ended:
            train_tiny(run, *settings(server))
        assert ended.value.code == EXIT_CODE
        assert ended.value.checkpoint == run / "checkpoints" / "step-000002"
        server.reply = answer
        before = len(server.asked)
        train_tiny(run, *settings(server), resume=ended.value.checkpoint)
    assert_same(run, whole[0])
    assert questions(server.asked[:59]).keys().isdisjoint(questions(server.asked[before:]).keys())


def test_a_budget_ends_a_run_in_order_and_a_larger_one_goes_on(whole: tuple[Path, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with endpoint_server(answer) as server:
        trainer = train_tiny(run, *settings(server, "--budget.requests", "60"))
        assert len(server.asked) <= 60
        assert trainer.state.step == 2
        assert (run / "tester" / "adapter_model.safetensors").exists()
        train_tiny(run, *settings(server, "--budget.requests", "100"), resume=run / "checkpoints" / "step-000002")
        assert len(server.asked) <= 100
        assert max(questions(server.asked).values()) == 1
    assert_same(run, whole[0])


def test_a_budget_that_ends_in_an_evaluation_keeps_the_step_before_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with endpoint_server(answer) as server:
        evaluating = ("--training.eval_steps", "1", "--budget.requests", "30")
        trainer = train_tiny(run, *settings(server, *evaluating))
        assert len(server.asked) <= 30
    assert trainer.state.step == 1
    assert (run / "checkpoints" / "step-000001").is_dir()
    assert (run / "tester" / "adapter_model.safetensors").exists()
    assert "eval/reward/mean" not in metrics(run)[-1]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_and_resumed_asks_nothing_twice(
    kills: int, whole: tuple[Path, Any], tmp_path: Path
) -> None:
    run, generator = tmp_path / "run", random.Random(kills)
    moments = sorted(generator.sample(range(5, STEPS * 24), kills))

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        time.sleep(0.02)
        answer(handler, request)

    with endpoint_server(reply) as server:
        job = ("--config", TINY_DPO, "--training.output_dir", run, *settings(server), "--resume", "auto")
        for moment in moments:
            with start("train.py", *job) as process:
                try:
                    end = time.monotonic() + 120
                    while len(questions(server.asked)) < moment:
                        assert process.poll() is None, process.communicate()
                        assert time.monotonic() < end, "too few questions were asked"
                        time.sleep(0.002)
                finally:
                    process.kill()
        ended = launch("train.py", *job)
        assert ended.returncode == 0, ended.stderr
    assert_same(run, whole[0])
    asked = questions(server.asked)
    assert asked.keys() == questions(whole[1].asked).keys()
    assert sum(asked.values()) - len(asked) <= kills * CONCURRENCY


def test_a_damaged_journal_is_named_before_anything_is_asked_or_loaded(whole: tuple[Path, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Without SQLite's log, which is there while the run's process is, and has pages of its own.
    shutil.copytree(whole[0], run, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    file = run / "journal" / "rank-0.sqlite"
    file.write_bytes(file.read_bytes()[:100] + b"\xa5" * 8000)
    with endpoint_server(answer) as server:
        job = ("--config", TINY_DPO, "--training.output_dir", run, *settings(server), "--resume", "auto")
        ended = launch("train.py", *job)
        assert server.asked == []
    assert ended.returncode == 2, ended.stderr
    assert f"error: the journal {file} is damaged" in ended.stderr
    assert "move it away to ask everything anew" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_an_evaluation_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--prompts.test.source", "bundled", "--prompts.test.split", "test[:6]", "--rollout.tree_width", "1")
    with endpoint_server(answer) as server:
        train_tiny(run, *settings(server), "--training.training_steps", "1")
        server.reply = lambda handler, request: (
            handler.fail(404, "no model 'm'") if len(server.asked) > 8 else answer(handler, request)
        )
        server.asked.clear()
        ended = launch("evaluate.py", run, *more)
        assert ended.returncode == 1, ended.stderr
        assert "interrupted: " in ended.stderr
        assert "no model 'm'" in ended.stderr
        server.reply = answer
        again = launch("evaluate.py", run, *more)
        assert again.returncode == 0, again.stderr
    asked = questions(server.asked)
    assert len(asked) == 12
    assert sum(asked.values()) - len(asked) <= CONCURRENCY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--target.path", "tiny"], "target: path is 'tiny', and endpoint is 'http://"),
        (["--target.model", ""], "target: endpoint is 'http://.*', but model is empty"),
        (["--target.adapter", "some/adapter"], "target: adapter is 'some/adapter', and endpoint is"),
        (["--target.quantization", "nf4"], "target: quantization is 'nf4', and endpoint is"),
        (["--target.api", "completions", "--rollout.format", "chat"], "target.api is 'completions'"),
        (["--reward.naturalness_model", "target"], "reward.naturalness_model is 'target', but the target is behind"),
        (["--target.api_key_env", "NO_SUCH_KEY"], "api_key_env is 'NO_SUCH_KEY', but no such environment variable"),
        (["--budget.requests", "23"], "budget.requests is 23, but one training step asks 24 questions"),
        (["--budget.cost", "1.0"], "budget: cost is set, but prices is empty"),
        (["--target.headers", '{"Authorization": "Bearer x"}'], "headers has Authorization with a value of its own"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked_or_loaded(
    changes: list[str], message: str, tmp_path: Path, no_pauses: None
) -> None:
    with endpoint_server(answer) as server:
        with pytest.raises(ValueError, match=message):
            train_tiny(tmp_path / "run", *settings(server, *changes))
        assert server.asked == []


def test_a_model_that_is_not_there_is_found_before_weights_load(tmp_path: Path) -> None:
    with endpoint_server(lambda handler, _: handler.fail(404, "no model 'm'")) as server:
        job = ("--config", TINY_DPO, "--training.output_dir", tmp_path / "run", *settings(server))
        ended = launch("train.py", *job)
    assert ended.returncode == 2
    assert f"error: {server.url}, model 'm': it answered with status 404" in ended.stderr
    assert "no model 'm'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(server.asked) == 1
