"""What the doctor finds out about an endpoint, and how it says that there is none."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from astra_accel.doctor.configuration import Check, check_configuration
from astra_accel.endpoints import client
from astra_accel.registries import ENDPOINT_SCORERS
from tests.helpers.endpoint_server import Handler, Reply, endpoint_server, saying


def checked(folder: Path, url: str, *more: str) -> Check:
    """The check of the target of a configuration."""
    path = folder / "run.yaml"
    lines = [f"endpoint: {url}", "model: m", "max_concurrency: 3", "max_retries: 0", *more]
    path.write_text("tester: {path: tiny}\ntarget:\n" + "".join(f"  {line}\n" for line in lines))
    (found,) = [check for check in check_configuration(path) if check.what == "target.endpoint"]
    return found


def with_logprobs(handler: Handler, request: dict[str, Any]) -> None:
    told = {"logprobs": {"content": [{"token": "W", "logprob": -0.5}]}} if request.get("logprobs") else {}
    handler.send({"choices": [{"message": {"content": "W"}, "finish_reason": "length", **told}]})


@pytest.mark.parametrize(
    ("reply", "found"), [(with_logprobs, "; returns log-probs"), (saying("Well."), "; returns no log-probs")]
)
def test_what_it_can_do_is_asked(tmp_path: Path, reply: Reply, found: str) -> None:
    with endpoint_server(reply) as server:
        check = checked(tmp_path, server.url)
        assert len(server.asked) == 2 + 3 + 1
    assert check.good
    assert f"{server.url}, model 'm' answers in " in check.found
    assert "3 questions at once in" in check.found
    assert "does not list its models" in check.found  # this server has no list
    assert found in check.found


def test_models_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def list_models(handler: Handler) -> None:
        handler.send({"object": "list", "data": [{"id": "a", "object": "model"}, {"id": "b", "object": "model"}]})

    monkeypatch.setattr(Handler, "do_GET", list_models, raising=False)
    with endpoint_server(saying("Well.")) as server:
        assert "its models: a, b" in checked(tmp_path, server.url).found


@pytest.mark.parametrize(
    ("reply", "more", "message"),
    [
        (lambda handler, _: handler.fail(404, "no model m"), [], "status 404: .*no model m"),
        (lambda handler, _: handler.fail(503, "down"), [], "status 503: .*down"),
        (saying("Well."), ["api_key_env: NO_SUCH_KEY"], "api_key_env is 'NO_SUCH_KEY', but no such environment"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, reply: Reply, more: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "OUTAGE_PAUSE", 0.0)
    with endpoint_server(reply) as server:
        check = checked(tmp_path, server.url, *more)
    assert check.good is False
    assert re.search(message, check.found)


def rating(handler: Handler, request: dict[str, Any]) -> None:
    """A moderation endpoint and a chat model at one address."""
    handler.send({"results": [{"category_scores": {"hate": 0.1}}]}) if "input" in request else handler.say("Well.")


@pytest.mark.parametrize("name", ENDPOINT_SCORERS)
@pytest.mark.parametrize("field", ["scorer", "evaluation.scorers.other", "evaluation.refusal_scorer"])
def test_the_endpoint_of_each_scorer_is_asked_too(tmp_path: Path, name: str, field: str) -> None:
    path = tmp_path / "run.yaml"
    with endpoint_server(rating) as server:
        options = {"endpoint": server.url, "model": "j", "max_concurrency": 3, "headers": None}
        scorer = json.dumps({"name": name, "options": options})
        written = {
            "scorer": f"scorer: {scorer}",
            "evaluation.scorers.other": f"evaluation: {{scorers: {{other: {scorer}}}}}",
            "evaluation.refusal_scorer": f"evaluation: {{benign: {{source: benign}}, refusal_scorer: {scorer}}}",
        }
        path.write_text(f"tester: {{path: tiny}}\n{written[field]}\n")
        (found,) = [check for check in check_configuration(path) if check.what == f"{field}.options.endpoint"]
        assert {request["model"] for request in server.asked} == {"j"}
        assert len(server.asked) == 2 + 3
        assert set(server.paths) == {"/v1/moderations" if name == "moderation" else "/v1/chat/completions"}
    assert found.good
    assert f"{server.url}, model 'j' answers in " in found.found
    assert "3 questions at once in" in found.found
    assert "does not list its models" in found.found


def test_a_scorer_s_endpoint_that_does_not_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with endpoint_server(lambda handler, _: handler.fail(404, "no model j")) as server:
        options = f"{{endpoint: '{server.url}', model: j}}"
        path.write_text(f"tester: {{path: tiny}}\nscorer: {{name: judge, options: {options}}}\n")
        (found,) = [check for check in check_configuration(path) if check.what == "scorer.options.endpoint"]
    assert found.good is False
    assert re.search("model 'j': it answered with status 404: .*no model j", found.found)


@pytest.mark.parametrize("name", ENDPOINT_SCORERS)
def test_a_scorer_that_asks_an_endpoint_needs_its_package(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Check:
        (check,) = [check for check in check_configuration(path) if check.what == "scorer"]
        return check

    path = tmp_path / "run.yaml"
    options = "{endpoint: 'http://127.0.0.1:1/v1', model: m, max_retries: 0}"
    path.write_text(f"tester: {{path: tiny}}\nscorer: {{name: {name}, options: {options}}}\n")
    assert found().good
    monkeypatch.setitem(sys.modules, "openai", None)
    assert found().good is False
    assert f"{name} needs openai" in found().found
