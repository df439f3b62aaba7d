"""What comes of questions to servers that answer well, badly, or not at all; each server is a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from astra_accel.endpoints import client
from astra_accel.endpoints.client import Answer, Endpoint, EndpointClient, EndpointError
from tests.helpers.endpoint_server import Handler, Reply, endpoint_server, in_turn, saying, slowly

QUESTION = [{"role": "user", "content": "How are you?"}]
Pauses = list[tuple[int, str | None]]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """The attempts after which a client would have waited, and what the server asked for; nobody waits here."""
    every: Pauses = []
    monkeypatch.setattr(client, "_pause", lambda attempt, asked: every.append((attempt, asked)) or 0.0)
    return every


def ask(reply: Reply, questions: int = 1, **settings: Any) -> tuple[list[Answer], Any]:
    """What a client gets of a server, and the server."""
    with endpoint_server(reply) as server:
        settings = {"timeout": 5.0, "max_retries": 3, **settings}
        return EndpointClient(Endpoint(server.url, "m", **settings)).ask([QUESTION] * questions, max_tokens=7), server


def failing(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    return lambda handler, _: handler.fail(status, message, code, **headers)


def sending(body: Any) -> Reply:
    return lambda handler, _: handler.send(body)


def test_a_question_goes_out_as_it_was_asked() -> None:
    answers, server = ask(saying("Well."), headers={"X-Team": "red"}, extra_body={"top_k": 3})
    assert answers == [Answer("answered", "Well.")]
    (request,) = server.asked
    assert request == {"model": "m", "messages": QUESTION, "max_tokens": 7, "top_k": 3}
    assert server.headers[0]["x-team"] == "red"


@pytest.mark.parametrize(
    "bad",
    [
        failing(429),
        failing(500),
        failing(503),
        failing(408),
        lambda handler, _: handler.break_off('{"id": "1", "choi'),
        lambda handler, _: setattr(handler, "close_connection", True),
        sending("<html>busy</html>"),
        sending("null"),
        sending("{}"),
        sending({"choices": []}),
        sending('{"choices": [{"message": {"content": "half a'),
        lambda handler, _: handler.say(None),
    ],
    ids=["429", "500", "503", "408", "half a body", "closed", "HTML", "null", "{}", "no choice", "bad JSON", "no text"],
)
def test_what_may_pass_is_tried_again_and_asked_no_more_than_needed(bad: Reply, pauses: Pauses) -> None:
    answers, server = ask(in_turn(bad, bad, saying("Well.")))
    assert answers == [Answer("answered", "Well.")]
    assert len(server.asked) == 3
    assert [attempt for attempt, _ in pauses] == [0, 1]


def test_a_server_says_how_long_to_wait(pauses: Pauses) -> None:
    ask(in_turn(failing(429, Retry_After="7"), saying("Well.")))
    assert pauses == [(0, "7")]


def test_pauses_double_with_jitter_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert client._pause(0, "7") == 7.0
    assert client._pause(0, "100000") == client.LONGEST_WAIT
    assert 2.0 <= client._pause(3, None) <= 4.0
    assert 2.0 <= client._pause(3, "Wed, 21 Oct 2026 07:28:00 GMT") <= 4.0
    assert client._pause(40, None) <= client.LONGEST_WAIT
    assert len({client._pause(3, None) for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (failing(401, "Incorrect API key provided"), "status 401: .*Incorrect API key provided"),
        (failing(403), "status 403"),
        (failing(404, "no model m"), "status 404: .*no model m"),
        (failing(400, "max_tokens is too large"), "status 400: .*max_tokens is too large"),
        (failing(429, "pay first", code="insufficient_quota"), "status 429: .*pay first"),
    ],
)
def test_what_does_not_pass_is_asked_once(bad: Reply, message: str, pauses: Pauses) -> None:
    with endpoint_server(bad) as server:
        with pytest.raises(EndpointError, match=rf"{server.url}, model 'm': it answered with {message}"):
            EndpointClient(Endpoint(server.url, "m")).check()
        assert len(server.asked) == 1
    assert pauses == []


def test_attempts_have_an_end_and_the_last_reason_is_said() -> None:
    with endpoint_server(failing(503, "overloaded")) as server:
        with pytest.raises(EndpointError, match=r"status 503: .*overloaded \(attempt 3 of 3\)"):
            EndpointClient(Endpoint(server.url, "m", max_retries=2)).check()
        assert len(server.asked) == 3


def test_nobody_there_and_a_slow_server() -> None:
    with endpoint_server(saying("")) as server:
        url = server.url
    with pytest.raises(EndpointError, match="no connection"):
        EndpointClient(Endpoint(url, "m", max_retries=1)).check()
    with pytest.raises(EndpointError, match=r"no connection.*attempt 2 of 2"):
        ask(slowly("late", 1.0), timeout=0.2, max_retries=1)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (failing(400, "blocked", code="content_filter"), Answer("filtered")),
        (failing(400, "The prompt was filtered by our content management policy."), Answer("filtered")),
        (lambda handler, _: handler.say("a part of it", finish_reason="content_filter"), Answer("filtered")),
        (lambda handler, _: handler.say(None, refusal="I won't."), Answer("refused", "I won't.")),
        (lambda handler, _: handler.say(""), Answer("answered", "")),
    ],
    ids=["input by code", "input by words", "output", "a refusal", "silence"],
)
def test_filters_and_refusals_are_outcomes_and_not_asked_again(reply: Reply, answer: Answer) -> None:
    answers, server = ask(reply)
    assert answers == [answer]
    assert len(server.asked) == 1


def test_answers_come_in_the_order_of_questions_and_no_more_are_under_way_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reply(handler: Handler, request: dict[str, Any]) -> None:
        number = int(request["messages"][0]["content"])
        threading.Event().wait(0.02 * (number % 3))
        handler.say(str(number))

    questions = [[{"role": "user", "content": str(number)}] for number in range(24)]
    with endpoint_server(reply) as server:
        answers = EndpointClient(Endpoint(server.url, "m", max_concurrency=6)).ask(questions, max_tokens=1)
        assert [answer.text for answer in answers] == [str(number) for number in range(24)]
        assert 1 < server.most_under_way <= 6
        monkeypatch.setenv("WORLD_SIZE", "3")
        server.most_under_way = 0
        EndpointClient(Endpoint(server.url, "m", max_concurrency=6)).ask(questions, max_tokens=1)
        assert server.most_under_way == 2


def test_one_error_ends_all_and_those_who_wait_for_another_attempt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_pause", lambda attempt, asked: 600.0)
    together = threading.Barrier(2, timeout=30)

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        together.wait()
        handler.fail(503 if request["messages"][0]["content"] == "wait" else 401)

    questions = [[{"role": "user", "content": text}] for text in ("go", "wait")]
    with endpoint_server(reply) as server, pytest.raises(EndpointError, match="401"):
        EndpointClient(Endpoint(server.url, "m")).ask(questions, max_tokens=1)


@pytest.mark.parametrize("repeat", [lambda key: f"Incorrect key: {key}.", lambda key: key])
def test_a_key_is_sent_and_never_shown(
    repeat: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-planted-8d1f")
    with endpoint_server(failing(401, repeat("sk-planted-8d1f"))) as server:
        endpoint = Endpoint(server.url, "m", api_key_env="TEST_KEY")
        with pytest.raises(EndpointError) as caught:
            EndpointClient(endpoint).check()
        assert server.headers[0]["authorization"] == "Bearer sk-planted-8d1f"
    assert caught.value.__cause__ is None
    for shown in (str(caught.value), repr(endpoint), caplog.text):
        assert "planted" not in shown


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(saying("Well."))[0] == [Answer("answered", "Well.")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "endpoint is 'localhost:8000', expected an address such as http://"),
        ({"url": "http:///v1"}, "endpoint is 'http:///v1'"),
        ({"model": ""}, "model is empty"),
        ({"timeout": 0}, "timeout is 0"),
        ({"max_retries": -1}, "max_retries -1"),
        ({"max_concurrency": 0}, "max_concurrency 0"),
        ({"api_key_env": "NO_SUCH_KEY"}, "api_key_env is 'NO_SUCH_KEY', but no such environment variable is set"),
    ],
)
def test_bad_settings_are_found_before_anything_is_asked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m", **arguments})
