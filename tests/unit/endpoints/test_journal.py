"""What a journal keeps, who reads it, and how much may still be asked."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from astra_accel.config import BudgetConfiguration
from astra_accel.core.prompt import Goal
from astra_accel.endpoints.answers import Answer, Question
from astra_accel.endpoints.client import EndpointClient, keeping
from astra_accel.endpoints.endpoint import Endpoint, EndpointError
from astra_accel.endpoints.journal import BudgetReached, Journal, Spent, question_key
from tests.helpers.endpoint_server import Handler, endpoint_server, in_turn, saying
from tests.helpers.scripted_target import answer

HELLO = Question([{"role": "user", "content": "Hello"}], {"max_tokens": 4, "seed": 1}, place="7/0/1")


def client(server, journal: Journal, **settings) -> EndpointClient:
    made = EndpointClient(Endpoint(server.url, "m", outage_limit=0.0, **settings), "target")
    made.keep_journal(journal)
    journal.join()
    return made


def shared(*journals: Journal) -> None:
    for journal in journals:
        journal.join()


def test_what_was_asked_is_not_asked_again_by_anybody(tmp_path: Path) -> None:
    with endpoint_server(answer) as server:
        first = client(server, Journal(tmp_path, 0, 2)).ask([HELLO])
        again = client(server, Journal(tmp_path, 0, 2)).ask([HELLO])
        other = client(server, Journal(tmp_path, 1, 2)).ask([HELLO])
        assert first == again == other
        assert len(server.asked) == 1
    assert sorted(file.name for file in tmp_path.glob("*.sqlite")) == ["rank-0.sqlite", "rank-1.sqlite"]


@pytest.mark.parametrize("change", [{"place": "7/0/2"}, {"sampling": {"max_tokens": 4, "seed": 2}}, {"content": "x"}])
def test_another_place_sampling_or_conversation_is_another_question(tmp_path: Path, change: dict) -> None:
    with endpoint_server(lambda handler, _: handler.send({"choices": [{"text": "Well."}]})) as server:
        asking = client(server, Journal(tmp_path), api="completions")
        asking.ask([Question(**{"content": "Hello", "sampling": HELLO.sampling, "place": HELLO.place})])
        asking.ask([Question(**{"content": "Hello", "sampling": HELLO.sampling, "place": HELLO.place, **change})])
        assert len(server.asked) == 2


def test_the_key_names_who_is_asked_and_where() -> None:
    request = {"model": "m", "messages": [], "seed": 1}
    keys = {
        question_key(*arguments)
        for arguments in [
            ("target", "http://a/v1", request, "0"),
            ("judge", "http://a/v1", request, "0"),
            ("target", "http://b/v1", request, "0"),
            ("target", "http://a/v1", {**request, "model": "n"}, "0"),
            ("target", "http://a/v1", {**request, "seed": 2}, "0"),
            ("target", "http://a/v1", request, "1"),
        ]
    }
    assert len(keys) == 6
    assert question_key("target", "u", {"a": 1, "b": 2}, "") == question_key("target", "u", {"b": 2, "a": 1}, "")


@pytest.mark.parametrize(
    "kept",
    [Answer("answered", "Well, \U0001f600"), Answer("refused", "No."), Answer("filtered"), Answer("answered", "")],
)
def test_every_outcome_comes_back_as_it_was(tmp_path: Path, kept: Answer) -> None:
    Journal(tmp_path).write("k", "target", "0", {"model": "m"}, kept)
    assert Journal(tmp_path).find("k") == kept


def test_half_a_character_is_kept_as_it_was_first_read(tmp_path: Path) -> None:
    body = '{"choices": [{"message": {"content": "Hm \\ud83d"}}]}'
    with endpoint_server(lambda handler, _: handler.send(body)) as server:
        first = client(server, Journal(tmp_path)).ask([HELLO])
        again = client(server, Journal(tmp_path)).ask([HELLO])
    assert first == again == [Answer("answered", "Hm ?")]


def test_a_question_that_failed_is_asked_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write("k", "target", "0", {"model": "m"}, Answer("failed", "status 500"))
    assert journal.find("k") is None
    journal.write("k", "target", "0", {"model": "m"}, Answer("answered", "Well."))
    assert Journal(tmp_path).find("k") == Answer("answered", "Well.")


def test_answers_that_came_before_an_error_are_kept(tmp_path: Path) -> None:
    def reply(handler: Handler, request: dict) -> None:
        handler.fail(401) if request["messages"][0]["content"] == "last" else handler.say("Well.")

    questions = [Question([{"role": "user", "content": text}], {"max_tokens": 4}) for text in ("a", "b", "last")]
    with endpoint_server(reply) as server:
        with pytest.raises(EndpointError, match="401"):
            client(server, Journal(tmp_path), max_concurrency=1).ask(questions)
        server.reply = saying("Another.")
        server.asked.clear()
        answers = client(server, Journal(tmp_path)).ask(questions)
        assert [one.text for one in answers] == ["Well.", "Well.", "Another."]
        assert len(server.asked) == 1


def test_a_goal_stands_beside_the_question_and_makes_no_other_of_it(tmp_path: Path) -> None:
    goal, odd = Goal("Be rude", "tone", "In a shop"), Goal("half a \ud83d")
    with endpoint_server(answer) as server:
        asking = client(server, Journal(tmp_path))
        asking.ask([replace(HELLO, goal=goal)])
        asking.ask([HELLO, replace(HELLO, goal=odd)])
        assert len(server.asked) == 1
        asking.ask([replace(HELLO, place="7/0/2", goal=odd)])
        assert "Be rude" not in str(server.asked)
    with sqlite3.connect(tmp_path / "rank-0.sqlite") as connection:
        found = connection.execute("SELECT place, goal, category FROM questions ORDER BY place").fetchall()
    assert found == [("7/0/1", "Be rude", "tone"), ("7/0/2", "half a ?", None)]


def test_nothing_is_read_without_being_asked_of_the_same(tmp_path: Path) -> None:
    with endpoint_server(answer) as server:
        client(server, Journal(tmp_path)).ask([HELLO])
        client(server, Journal(tmp_path), extra_body={"top_k": 1}).ask([HELLO])
        assert len(server.asked) == 2


# --- Budgets ------------------------------------------------------------------------------------------------


def spend(journal: Journal, most: int = 100) -> int:
    """How many requests a journal lets through."""
    for number in range(most):
        try:
            journal.count_request("m")
        except BudgetReached:
            return number
    return most


def test_a_budget_is_shared_evenly_and_to_the_last_request(tmp_path: Path) -> None:
    journals = [Journal(tmp_path, rank, 3, BudgetConfiguration(requests=11)) for rank in range(3)]
    shared(*journals)
    assert [spend(journal) for journal in journals] == [4, 4, 3]


def test_a_budget_counts_what_was_asked_before_by_anybody(tmp_path: Path) -> None:
    journals = [Journal(tmp_path, rank, 2, BudgetConfiguration(requests=10)) for rank in range(2)]
    shared(*journals)
    assert [spend(journals[0], 2), spend(journals[1], 3)] == [2, 3]
    alone = Journal(tmp_path, 0, 1, BudgetConfiguration(requests=10))
    shared(alone)
    assert spend(alone) == 5
    over = Journal(tmp_path, 5, 1, BudgetConfiguration(requests=10))
    shared(over)
    assert spend(over) == 0
    more = Journal(tmp_path, 0, 1, BudgetConfiguration(requests=12))
    shared(more)
    assert spend(more) == 2


def test_every_attempt_counts(tmp_path: Path) -> None:
    budget = BudgetConfiguration(requests=3)
    with endpoint_server(in_turn(lambda handler, _: handler.fail(500, Retry_After="0"), answer)) as server:
        journal = Journal(tmp_path, budget=budget)
        journal.join()
        asking = client(server, journal)
        asking.ask([HELLO])
        with pytest.raises(BudgetReached, match=r"budget.requests is used up \(3\)"):
            asking.ask([Question(HELLO.content, HELLO.sampling, place=str(number)) for number in range(4)])
        assert len(server.asked) == 3


def test_a_check_before_the_journal_counts_too(tmp_path: Path) -> None:
    with endpoint_server(answer) as server:
        asking = EndpointClient(Endpoint(server.url, "m"), "target")
        asking.check()
        journal = Journal(tmp_path)
        asking.keep_journal(journal)
        asking.ask([HELLO])
        assert journal.spent() == {"m": Spent(2, 0, 0)}


def test_a_client_that_is_made_meanwhile_keeps_the_journal_from_its_first_question(tmp_path: Path) -> None:
    with endpoint_server(answer) as server:
        journal = Journal(tmp_path)
        with keeping(journal):
            EndpointClient(Endpoint(server.url, "m"), "judge").check()
        assert journal.spent() == {"m": Spent(1, 0, 0)}
        EndpointClient(Endpoint(server.url, "m"), "judge").check()
        assert journal.spent() == {"m": Spent(1, 0, 0)}


@pytest.mark.parametrize("early", [True, False], ids=["kept from the start", "kept after the check"])
def test_without_budget_left_a_check_has_the_answer_of_an_earlier_launch_and_else_ends_in_order(
    early: bool, tmp_path: Path
) -> None:
    with endpoint_server(answer) as server:
        asking = EndpointClient(Endpoint(server.url, "m"), "target")
        journal = Journal(tmp_path, budget=BudgetConfiguration(requests=1))
        if early:
            asking.keep_journal(journal)
        first = asking.check()
        asking.keep_journal(journal)
        for _ in range(2):
            later = client(server, Journal(tmp_path, budget=BudgetConfiguration(requests=1)))
            assert later.check() == first
            with pytest.raises(BudgetReached, match=r"budget.requests is used up \(1\)"):
                later.check(HELLO)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        ({"tokens": 100}, 4),  # 30 each: three questions come to 90, a fourth passes it
        ({"cost": 0.001, "prices": {"m": {"input": 10.0, "output": 20.0}}}, 3),  # 0.0004 each
    ],
)
def test_tokens_and_money_end_once_they_are_passed(tmp_path: Path, budget: dict, asked: int) -> None:
    def reply(handler: Handler, _: dict) -> None:
        usage = {"prompt_tokens": 20, "completion_tokens": 10}
        handler.send({"choices": [{"message": {"content": "Well."}}], "usage": usage})

    questions = [Question(HELLO.content, HELLO.sampling, place=str(number)) for number in range(9)]
    with endpoint_server(reply) as server:
        journal = Journal(tmp_path, budget=BudgetConfiguration(**budget))
        journal.join()
        with pytest.raises(BudgetReached, match=f"budget.{next(iter(budget))} is used up"):
            client(server, journal, max_concurrency=1).ask(questions)
        assert len(server.asked) == asked
    assert journal.spent()["m"] == Spent(asked, 20 * asked, 10 * asked)


def test_without_a_folder_it_is_kept_in_memory() -> None:
    with endpoint_server(answer) as server:
        asking = client(server, Journal())
        assert asking.ask([HELLO]) == asking.ask([HELLO])
        assert len(server.asked) == 1
