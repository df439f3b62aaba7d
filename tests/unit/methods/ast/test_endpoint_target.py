"""What a target behind an endpoint is asked, and what becomes of its answers; the server is a real one."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from astra_accel import HFASTSystem
from astra_accel.config import RolloutConfiguration, SamplingConfiguration, TargetConfiguration
from astra_accel.core.prompt import Goal, Prompt
from astra_accel.endpoints.journal import Journal
from astra_accel.methods.ast.transcript import Transcript
from tests.helpers.endpoint_server import Handler, endpoint_server

Asking = tuple[HFASTSystem, Any]
PROMPT, FIRST, SECOND = "It rains.", " Why is that?", " Tell me."


@pytest.fixture
def asking() -> Iterator[Callable[..., Asking]]:
    """Make a system whose target answers ``A1``, ``A2`` and so on; with its server."""
    servers = []

    def make(api: str = "chat", reply: Any = None, **rollout: Any) -> Asking:
        def numbered(handler: Handler, _: dict[str, Any]) -> None:
            text = f"A{len(servers[-1][1].asked)}"
            handler.say(text) if api == "chat" else handler.send({"choices": [{"text": f" {text}"}]})

        server = endpoint_server(reply or numbered)
        entered = server.__enter__()
        servers.append((server, entered))
        target = TargetConfiguration(endpoint=entered.url, model="m", api=api)
        system = HFASTSystem("tiny", target, rollout=RolloutConfiguration(**rollout), naturalness_model="baseline")
        return system, entered

    yield make
    for server, _ in servers:
        server.__exit__(None, None, None)


def turn(system: HFASTSystem, state: Transcript, text: str, seed: int = 0) -> Transcript:
    """The conversation after a probe and its answer."""
    probe = system.views.segment("probe", text, state)
    (response,) = system.rollout_prompt_with_target([state + probe], seeds=[(seed,)])
    return system.advance(state, probe, response)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_running_text_becomes_messages_and_its_answers_part_of_it(asking: Callable[..., Asking]) -> None:
    system, server = asking()
    state = turn(system, turn(system, system.start(PROMPT), FIRST), SECOND)
    assert server.asked[0]["messages"] == [user("It rains. Why is that?")]
    assert server.asked[1]["messages"] == [user("It rains. Why is that?"), assistant("A1"), user("Tell me.")]
    assert str(state) == "It rains. Why is that? A1 Tell me. A2"


def test_a_chat_keeps_its_messages_as_they_were_written(asking: Callable[..., Asking]) -> None:
    system, server = asking(format="chat", target_instruction="Be kind.")
    state = turn(system, turn(system, system.start(PROMPT), FIRST), SECOND)
    system_message = {"role": "system", "content": "Be kind."}
    assert server.asked[0]["messages"] == [system_message, user("It rains.\n Why is that?")]
    assert server.asked[1]["messages"][1:] == [user("It rains.\n Why is that?"), assistant("A1"), user(" Tell me.")]
    assert str(state) == "It rains.\n Why is that?\nA1\n Tell me.\nA2"


def test_the_journal_has_the_goal_and_the_target_is_not_told(asking: Callable[..., Asking], tmp_path: Path) -> None:
    system, server = asking()
    system.keep_journal(Journal(tmp_path))
    turn(system, system.start(Prompt(Goal("Be rude", "tone"), PROMPT)), FIRST)
    turn(system, system.start(PROMPT), SECOND)
    assert "Be rude" not in str(server.asked)
    with sqlite3.connect(tmp_path / "rank-0.sqlite") as connection:
        found = set(connection.execute("SELECT goal, category FROM questions"))
    assert found == {("Be rude", "tone"), (None, None)}


def test_completions_go_on_with_the_text(asking: Callable[..., Asking]) -> None:
    system, server = asking(api="completions")
    state = turn(system, turn(system, system.start(PROMPT), FIRST), SECOND)
    assert [request["prompt"] for request in server.asked] == [
        "It rains. Why is that?",
        "It rains. Why is that? A1 Tell me.",
    ]
    assert str(state) == "It rains. Why is that? A1 Tell me. A2"


def test_sampling_is_that_of_the_target_and_seeds_follow_from_the_place(asking: Callable[..., Asking]) -> None:
    sampling = SamplingConfiguration(temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=5)
    system, server = asking(target=sampling)
    for seed in (1, 1, 2):
        turn(system, system.start(PROMPT), FIRST, seed)
    first, again, other = server.asked
    assert first == again
    expected = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 5}
    assert {name: first[name] for name in expected} == expected
    assert 0 <= first["seed"] < 2**31
    assert first["seed"] != other["seed"]


def test_what_was_filtered_is_not_told_again_but_the_tester_sees_it(asking: Callable[..., Asking]) -> None:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        if len(server.asked) == 1:
            handler.fail(400, "blocked", code="content_filter")
        else:
            handler.say("Well.")

    system, server = asking(reply=reply, format="chat")
    after = turn(system, system.start(PROMPT), FIRST)
    assert [segment.outcome for segment in after.segments] == ["answered", "answered", "filtered"]
    state = turn(system, after, SECOND)
    assert server.asked[1]["messages"] == [user("It rains.\n Tell me.")]
    assert str(state) == "It rains.\n Why is that?\n\n Tell me.\nWell."


def test_the_oldest_exchanges_are_dropped_where_the_context_is_limited(asking: Callable[..., Asking]) -> None:
    system, server = asking(
        format="chat", context_limit=120, tester={"max_new_tokens": 8}, target={"max_new_tokens": 8}
    )
    state = system.start(PROMPT)
    for number in range(4):
        state = turn(system, state, f" This is number {number}, and it has some length.")
    last = server.asked[-1]["messages"]
    assert last[-1] == user(" This is number 3, and it has some length.")
    assert last[0]["role"] == "user"
    assert "number 0" not in str(last)
    assert len(server.asked[0]["messages"]) == 1


def test_nothing_is_asked_of_the_target_s_inside(asking: Callable[..., Asking]) -> None:
    system, _ = asking()
    with pytest.raises(ValueError, match="the target is behind an endpoint, which returns no log-probs"):
        system.get_target_logprobs([PROMPT], [FIRST])
    assert system.roles.target.model is system.roles.baseline.model  # and no weights are there for it
    assert len(system.reward([PROMPT], [FIRST], [" Well."])) == 1


def test_naturalness_by_the_target_is_refused_before_weights_load() -> None:
    target = TargetConfiguration(endpoint="http://127.0.0.1:1/v1", model="m")
    with pytest.raises(ValueError, match="returns no log-probs; expected naturalness_model 'baseline'"):
        HFASTSystem("tiny", target)


def test_a_key_and_the_package_are_looked_for_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TargetConfiguration(endpoint="http://127.0.0.1:1/v1", model="m", api_key_env="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="api_key_env is 'NO_SUCH_KEY'"):
        HFASTSystem("tiny", target)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'astra-accel\[endpoint\]'"):
        HFASTSystem("tiny", target.model_copy(update={"api_key_env": None}))
