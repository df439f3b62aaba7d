"""What comes of questions to servers that answer well, badly, or not at all; each server is a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from astra_accel.endpoints import client
from astra_accel.endpoints.answers import Answer, Question
from astra_accel.endpoints.client import EndpointClient
from astra_accel.endpoints.endpoint import Endpoint, EndpointError, OutageError
from tests.helpers.endpoint_server import Handler, Reply, endpoint_server, in_turn, saying, slowly

QUESTION = [{"role": "user", "content": "How are you?"}]
Pauses = list[tuple[int, str | None]]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """The attempts after which a client would have waited, and what the server asked for; nobody waits here."""
    every: Pauses = []
    monkeypatch.setattr(client, "pause", lambda attempt, asked: every.append((attempt, asked)) or 0.0)
    monkeypatch.setattr(client, "OUTAGE_PAUSE", 0.01)
    return every


def asked_of(server: Any, questions: int = 1, **settings: Any) -> list[Answer]:
    """The answers to equal questions of different places."""
    settings = {"timeout": 5.0, "max_retries": 3, "outage_limit": 0.0, **settings}
    asked = [Question(QUESTION, {"max_tokens": 7}, place=str(number)) for number in range(questions)]
    return EndpointClient(Endpoint(server.url, "m", **settings), "target").ask(asked)


def ask(reply: Reply, questions: int = 1, **settings: Any) -> tuple[list[Answer], Any]:
    """What a client gets of a server, and the server."""
    with endpoint_server(reply) as server:
        return asked_of(server, questions, **settings), server


def texts(*said: str) -> list[Question]:
    return [Question([{"role": "user", "content": text}], {"max_tokens": 1}) for text in said]


def of(server: Any, **settings: Any) -> EndpointClient:
    return EndpointClient(Endpoint(server.url, "m", **settings), "target")


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
            of(server).check()
        assert len(server.asked) == 1
    assert pauses == []


def test_attempts_have_an_end_and_the_last_reason_is_said() -> None:
    with endpoint_server(failing(503, "overloaded")) as server:
        with pytest.raises(EndpointError, match=r"status 503: .*overloaded \(attempt 3 of 3\)"):
            of(server, max_retries=2).check()
        assert len(server.asked) == 3


def test_nobody_there_and_a_slow_server() -> None:
    with endpoint_server(saying("")) as server:
        url = server.url
    with pytest.raises(EndpointError, match="no connection"):
        EndpointClient(Endpoint(url, "m", max_retries=1), "target").check()
    with pytest.raises(OutageError, match=r"no answer for 0 s, at last: no connection"):
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

    questions = texts(*map(str, range(24)))
    with endpoint_server(reply) as server:
        answers = of(server, max_concurrency=6).ask(questions)
        assert [answer.text for answer in answers] == [str(number) for number in range(24)]
        assert 1 < server.most_under_way <= 6
        monkeypatch.setenv("WORLD_SIZE", "3")
        server.most_under_way = 0
        of(server, max_concurrency=6).ask(questions)
        assert server.most_under_way == 2


def test_one_error_ends_all_and_those_who_wait_for_another_attempt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "pause", lambda attempt, asked: 600.0)
    together = threading.Barrier(2, timeout=30)

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        together.wait()
        handler.fail(503 if request["messages"][0]["content"] == "wait" else 401)

    with endpoint_server(reply) as server, pytest.raises(EndpointError, match="401"):
        of(server).ask(texts("go", "wait"))


@pytest.mark.parametrize("repeat", [lambda key: f"Incorrect key: {key}.", lambda key: key])
def test_a_key_is_sent_and_never_shown(
    repeat: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-planted-8d1f")
    with endpoint_server(failing(401, repeat("sk-planted-8d1f"))) as server:
        endpoint = Endpoint(server.url, "m", api_key_env="TEST_KEY")
        with pytest.raises(EndpointError) as caught:
            EndpointClient(endpoint, "target").check()
        assert server.headers[0]["authorization"] == "Bearer sk-planted-8d1f"
    assert caught.value.__cause__ is None
    for shown in (str(caught.value), repr(endpoint), caplog.text):
        assert "planted" not in shown


def test_headers_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "planted-8d1f")
    with endpoint_server(failing(401, "bad key planted-8d1f")) as server:
        with pytest.raises(EndpointError) as caught:
            of(server, headers={"api-key": "$TEST_KEY"}).check()
        assert server.headers[0]["api-key"] == "planted-8d1f"
    assert "planted" not in str(caught.value)


def test_a_question_that_alone_gets_no_answer_has_failed() -> None:
    def reply(handler: Handler, request: dict[str, Any]) -> None:
        if request["messages"][0]["content"] == "poison":
            handler.fail(500, "bad input")
        else:
            handler.say("Well.")

    with endpoint_server(reply) as server:
        good, bad, also_good = of(server, max_retries=1).ask(texts("a", "poison", "b"))
    assert good == also_good == Answer("answered", "Well.")
    assert bad.outcome == "failed"
    assert "status 500: " in bad.text
    assert "bad input (attempt 2 of 2)" in bad.text
    asked = [request["messages"][0]["content"] for request in server.asked]
    assert sorted(asked) == ["Hello.", "a", "b", "poison", "poison"]


def test_an_outage_is_waited_out_and_only_what_is_open_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    answered: list[str] = []

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        text = request["messages"][0]["content"]
        if answered and len(server.asked) < 9 and text not in answered:
            handler.fail(503)
        else:
            answered.append(text)
            handler.say(text)

    with endpoint_server(reply) as server:
        answers = of(server, max_retries=1, max_concurrency=1, outage_limit=60.0).ask(texts("a", "b", "c"))
    assert answers == [Answer("answered", text) for text in "abc"]
    asked = [request["messages"][0]["content"] for request in server.asked]
    assert asked[:5] == ["a", "b", "b", "c", "c"]  # two attempts each
    assert set(asked[5:8]) == {"Hello."}  # is it back?
    assert asked.count("a") == 1
    assert "The endpoint answers nothing: waiting for at most 60 s" in caplog.text
    assert "answers again after" in caplog.text


def test_an_outage_has_an_end() -> None:
    with (
        endpoint_server(failing(503, "down")) as server,
        pytest.raises(OutageError, match=r"no answer for \d+ s.*down"),
    ):
        of(server, max_retries=0, outage_limit=0.05).ask(texts("a", "b"))
    assert OutageError("").exit_code == 75


def test_a_server_that_drips_is_given_up_in_time() -> None:
    def drip(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            if gone.wait(0.05):
                break
        handler.close_connection = True

    gone = threading.Event()
    try:
        answers, _ = ask(in_turn(drip, saying("Well.")), timeout=0.3)
    finally:
        gone.set()
    assert answers == [Answer("answered", "Well.")]


def test_completions_are_running_texts_and_what_a_service_does_not_take_is_left_out() -> None:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.send({"choices": [{"text": " more", "finish_reason": "length"}], "usage": {"prompt_tokens": 3}})

    with endpoint_server(reply) as server:
        asked = Question("Once", {"max_tokens": 7, "seed": 1, "top_p": 1.0})
        (answer,) = of(server, api="completions", omit=["seed"], extra_body={"top_k": 0, "top_p": 0.5}).ask([asked])
    assert (answer, answer.prompt_tokens) == (Answer("answered", " more"), 3)
    (request,) = server.asked
    assert request == {"model": "m", "prompt": "Once", "max_tokens": 7, "top_k": 0, "top_p": 0.5}


def test_moderations_are_of_one_text_and_have_the_scores_as_json() -> None:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        result = {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 1e-05, "self-harm": 0.1}}
        handler.send({"id": "modr-1", "model": "m", "results": [result], "usage": {"prompt_tokens": 4}})

    with endpoint_server(reply) as server:
        asking = of(server, api="moderations", extra_body={"detail": True})
        (answer,) = asking.ask([Question("Once", {"max_tokens": 7})])
        assert asking.check() == answer
    assert (answer, answer.prompt_tokens) == (Answer("answered", '{"hate": 1e-05, "self-harm": 0.1}'), 4)
    assert server.asked == [{"model": "m", "input": text, "detail": True} for text in ("Once", "Hello.")]
    assert server.paths == ["/v1/moderations"] * 2


def test_equal_questions_are_asked_once_and_those_of_other_places_each() -> None:
    with endpoint_server(saying("Well.")) as server:
        of(server).ask(texts("a", "a"))
        assert len(server.asked) == 1
        asked_of(server, questions=2)
        assert len(server.asked) == 3


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
        ({"headers": {"X-Key": "$NO_SUCH_KEY"}}, "headers.X-Key is 'NO_SUCH_KEY', but no such environment variable"),
        ({"headers": {"Authorization": "Bearer x"}}, "headers has Authorization with a value of its own"),
        ({"url": "http://me:secret@host/v1"}, "endpoint holds a password"),
    ],
)
def test_bad_settings_are_found_before_anything_is_asked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Endpoint(**{"url": "http://127.0.0.1:1/v1", "model": "m", **arguments})


@pytest.mark.parametrize("name", ["max_concurrency", "requests_per_minute", "tokens_per_minute"])
def test_a_limit_that_processes_can_not_share_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=rf"^{name} is 3, but 4 processes ask http.* share it; expected at least 4"):
        Endpoint("http://127.0.0.1:1/v1", "m", **{name: 3})
    assert Endpoint("http://127.0.0.1:1/v1", "m", **{name: 7}).own_part(7) == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Endpoint("http://127.0.0.1:1/v1", "m", **{name: 3}).own_part(3) == 3


@pytest.mark.parametrize(("processes", "expected", "own"), [(1, 16, 16), (8, 16, 2), (24, 24, 1)])
def test_by_default_each_process_may_ask(
    processes: int, expected: int, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    assert endpoint.concurrency == expected
    assert endpoint.own_part(endpoint.concurrency) == own
