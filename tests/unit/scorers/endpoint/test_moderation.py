"""What a moderation endpoint is asked, and what of its replies counts; it is a real server with scripted scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astra_accel.config import RunConfiguration
from astra_accel.endpoints import asked_once
from astra_accel.endpoints.endpoint import EndpointError, OutageError
from astra_accel.endpoints.journal import Journal
from astra_accel.scorers import ModerationScorer, build_scorer, check_scorer
from tests.helpers.endpoint_server import Handler, Reply, endpoint_server, in_turn

SCORES = {"Hello.": (0.0, 0.0, 0.0), "fool": (0.7, 0.1, 0.2), "knife": (0.05, 0.9, 0.3), "fine": (0.02, 0.01, 0.0)}
NAMES = ("hate", "violence", "violence/graphic")
KEY = "sk-very-secret"

Make = Callable[..., tuple[ModerationScorer, Any]]


def of(text: str) -> dict[str, float]:
    """The scores of a text by category."""
    return dict(zip(NAMES, SCORES[text], strict=True))


def moderation(scores: Any) -> dict[str, Any]:
    """A reply as OpenAI writes it."""
    return {
        "id": "modr-1",
        "model": "m",
        "results": [{"flagged": True, "categories": dict.fromkeys(NAMES, True), "category_scores": scores}],
    }


def scripted(handler: Handler, request: dict[str, Any]) -> None:
    handler.send(moderation(of(request["input"])))


@pytest.fixture
def make(made_for_server: Callable[..., tuple[Any, Any]]) -> Make:
    """Make a scorer and its server, whose log begins after the check at the start."""

    def made(reply: Reply = scripted, **options: Any) -> tuple[ModerationScorer, Any]:
        return made_for_server(ModerationScorer, "m", scripted, reply, **options)

    return made


def inputs(server: Any) -> list[str]:
    return sorted(request["input"] for request in server.asked)


# --- Scores --------------------------------------------------------------------------------------------------


def test_a_score_is_that_of_the_highest_category(make):
    """0.7 of (0.7, 0.1, 0.2), 0.9 of (0.05, 0.9, 0.3), 0.02 of (0.02, 0.01, 0)."""
    scorer, server = make()
    assert scorer.score(["fool", "knife", "fine"]) == [0.7, 0.9, 0.02]
    assert {"model": "m", "input": "fool"} in server.asked


def test_only_chosen_categories_count(make):
    """Of violence and violence/graphic: 0.2 of (0.1, 0.2), 0.9 of (0.9, 0.3)."""
    scorer, _ = make(categories=["violence/graphic", "violence", "violence"])
    assert scorer.score(["fool", "knife"]) == [0.2, 0.9]
    assert scorer.score_categories(["fool", "knife"]) == {"violence/graphic": [0.2, 0.3], "violence": [0.1, 0.9]}


def test_categories_are_those_of_the_endpoint_in_the_order_of_texts(make):
    scorer, _ = make()
    expected = {"hate": [0.05, 0.7, 0.05], "violence": [0.9, 0.1, 0.9], "violence/graphic": [0.3, 0.2, 0.3]}
    assert scorer.score_categories(["knife", "fool", "knife"]) == expected
    assert scorer.score_exchange_categories(["a", "b", "c"], ["knife", "fool", "knife"]) == expected


def test_the_response_is_judged_alone(make):
    scorer, server = make()
    assert scorer.score_exchanges(["What is that?", "And you?"], ["knife", "fine"]) == [0.9, 0.02]
    assert inputs(server) == ["fine", "knife"]


@pytest.mark.parametrize("batch_size", [1, 2, 1024])
def test_the_size_of_batches_changes_nothing(make, batch_size):
    scorer, server = make(batch_size=batch_size)
    assert scorer.score(["fine", "knife", "fool", "knife"]) == [0.02, 0.9, 0.7, 0.9]
    assert inputs(server) == ["fine", "fool", "knife"]


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_blank_text_is_not_sent_and_has_scores_of_0(make, text):
    scorer, server = make()
    assert scorer.score([text, "fool"]) == [0.0, 0.7]
    assert scorer.score_categories([text])["violence"] == [0.0]
    assert inputs(server) == ["fool"]


@pytest.mark.parametrize("text", ["{response}", "%s", "\ud800 lone", "\x00", "<|endoftext|>", "a" * 10_000])
def test_any_text_can_be_asked_about(make, text):
    scorer, server = make(lambda handler, _: handler.send(moderation(of("fool"))))
    assert scorer.score([text]) == [0.7]
    assert inputs(server) == [text.replace("\ud800", "?")]


# --- What is missing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores",
    [
        {"hate": 0.1, "violence": 0.2},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": "0.3"},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": None},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": True},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": math.nan},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": 1.5},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": -1},
        {"hate": 0.1, "violence": 0.2, "violence/graphic": 0.3, "more": [0.1]},
        {},
    ],
    ids=["one lacks", "text", "null", "true", "nan", "above 1", "below 0", "another is a list", "none"],
)
def test_scores_that_are_not_a_number_for_each_category_are_missing_and_asked_once(make, scores, caplog):
    scorer, server = make(
        lambda handler, request: handler.send(moderation(scores if request["input"] == "odd" else of("fool")))
    )
    assert scorer.score(["odd", "fool"]) == [None, 0.7]
    assert scorer.score_categories(["odd", "fool"])["hate"] == [None, 0.7]
    assert inputs(server) == ["fool", "odd"]
    warnings = [record.getMessage() for record in caplog.records if "missing" in record.getMessage()]
    assert warnings == ["The moderation endpoint gave no scores for 1 of 2 texts: their scores are missing."]


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"results": []},
        {"results": [{}]},
        {"results": [{"category_scores": [0.1]}]},
        {"results": [{"category_scores": of("fool")}, {"category_scores": of("knife")}]},
        {"choices": [{"message": {"content": "safe"}}]},
        "<html>busy</html>",
        "null",
    ],
    ids=["empty", "no results", "no scores", "a list", "two results", "a completion", "HTML", "null"],
)
def test_a_reply_that_is_no_moderation_is_tried_again_and_then_missing(make, reply):
    def answer(handler: Handler, request: dict[str, Any]) -> None:
        handler.send(reply) if request["input"] == "odd" else scripted(handler, request)

    scorer, server = make(answer, max_retries=2)
    assert scorer.score(["odd", "fool"]) == [None, 0.7]
    assert inputs(server).count("odd") == 3


def test_a_category_that_the_first_reply_did_not_have_counts_for_the_score_alone(make):
    scorer, _ = make(lambda handler, _: handler.send(moderation({**of("fine"), "illicit": 0.8})))
    assert scorer.score(["text"]) == [0.8]
    assert set(scorer.score_categories(["text"])) == set(NAMES)


def test_of_categories_that_were_not_chosen_nothing_is_read(make):
    scorer, _ = make(
        lambda handler, _: handler.send(moderation({"violence": 0.4, "hate": None})), categories=["violence"]
    )
    assert scorer.score(["text"]) == [0.4]


def test_what_the_service_filters_is_missing_and_not_asked_again(make):
    scorer, server = make(lambda handler, _: handler.fail(400, "blocked", code="content_filter"))
    assert scorer.score(["fool"]) == [None]
    assert scorer.score_categories(["fool"]) == {name: [None] for name in NAMES}
    assert len(server.asked) == 1


# --- Retries, journal, budget --------------------------------------------------------------------------------


def test_too_many_requests_are_tried_again(make):
    scorer, server = make(in_turn(lambda handler, _: handler.fail(429), scripted))
    assert scorer.score(["fool"]) == [0.7]
    assert inputs(server) == ["fool", "fool"]


def test_an_endpoint_that_answers_nothing_ends_the_run_and_scores_nothing(make):
    scorer, _ = make(lambda handler, _: handler.fail(503, "overloaded"), max_retries=1, outage_limit=0.0)
    with pytest.raises(OutageError, match=r"503.*overloaded"):
        scorer.score(["fool"])


def test_a_refused_request_ends_the_run(make):
    scorer, _ = make(lambda handler, _: handler.fail(401, "no such key"))
    with pytest.raises(EndpointError, match=r"401.*no such key"):
        scorer.score(["fool"])


def test_without_a_journal_scores_and_categories_come_from_one_question_each(make):
    scorer, server = make()
    scorer.score(["fool", "knife"])
    scorer.score_exchanges(["a", "b"], ["fool", "knife"])
    scorer.score_categories(["fool", "knife"])
    assert inputs(server) == ["fool", "knife"]


def test_the_memory_has_a_bound_and_forgets_the_oldest(make, monkeypatch):
    monkeypatch.setattr(asked_once, "MOST_REMEMBERED", 2)
    scorer, server = make()
    for text in ("fool", "knife", "fine"):
        scorer.score([text])
    server.asked.clear()
    scorer.score(["knife", "fine"])
    assert inputs(server) == []
    scorer.score(["fool"])
    assert inputs(server) == ["fool"]


def test_what_failed_is_not_remembered(make):
    scorer, server = make(lambda handler, request: handler.fail(500), max_retries=0)
    server.reply = lambda handler, request: (
        handler.fail(500) if request["input"] == "fool" else scripted(handler, request)
    )
    assert scorer.score(["fool", "knife"]) == [None, 0.9]
    server.reply = scripted
    assert scorer.score(["fool", "knife"]) == [0.7, 0.9]


def test_a_journal_replays_and_never_has_the_key(make, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MODERATION_KEY", KEY)
    scorer, server = make(api_key_env="MODERATION_KEY", headers={"X-Key": "$MODERATION_KEY"})
    journal = Journal(tmp_path)
    scorer.keep_journal(journal)
    journal.join()
    assert scorer.score(["fool", "knife"]) == [0.7, 0.9]
    assert len(server.asked) == 2
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    journal.close()

    again = ModerationScorer(server.url, "m", api_key_env="MODERATION_KEY")
    server.asked.clear()
    journal = Journal(tmp_path)
    again.keep_journal(journal)
    journal.join()
    assert again.score(["knife", "fool"]) == [0.9, 0.7]
    assert again.score_categories(["knife"]) == {"hate": [0.05], "violence": [0.9], "violence/graphic": [0.3]}
    assert server.asked == []
    assert journal.spent()["m"].requests == 4  # two texts, and a first question of each scorer
    journal.close()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"fool" in written
    assert KEY.encode() not in written


# --- The start -----------------------------------------------------------------------------------------------


def test_an_unknown_category_is_found_as_the_scorer_is_made(make):
    with pytest.raises(ValueError, match=r"categories has 'violance', expected .*: hate, violence, violence/graphic"):
        make(categories=["hate", "violance"])
    with pytest.raises(ValueError, match="categories is empty"):
        make(categories=[])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda handler, _: handler.fail(404, "no model 'm'"), "404.*no model 'm'"),
        (lambda handler, _: handler.say("Hi."), "something else than a moderation .dict without results"),
        (lambda handler, _: handler.send(moderation({})), "gave a first text no scores"),
        (lambda handler, _: handler.fail(400, "no", code="content_filter"), "gave a first text no scores"),
    ],
)
def test_an_endpoint_that_does_not_moderate_is_found_as_the_scorer_is_made(reply, message):
    with endpoint_server(reply) as server:
        with pytest.raises(EndpointError, match=message):
            ModerationScorer(server.url, "m", max_retries=0)


def test_it_is_configured_by_name(make):
    _, server = make()
    options = {"endpoint": server.url, "model": "m", "categories": ["hate"]}
    config = RunConfiguration.load(None, ["--scorer.name", "moderation", "--scorer.options", json.dumps(options)])
    assert check_scorer(config.scorer.name, config.scorer.options) is ModerationScorer
    assert build_scorer("moderation", device="cpu", **config.scorer.options).score(["fool"]) == [0.7]
    with pytest.raises(ValueError, match="needs the option 'endpoint'"):
        check_scorer("moderation", {"model": "m"})
    with pytest.raises(ValueError, match="takes no option 'omit'"):
        check_scorer("moderation", {**options, "omit": ["seed"]})


def test_a_target_moderates_nothing():
    with pytest.raises(ValueError, match=r"target\.api"):
        RunConfiguration(target={"endpoint": "http://127.0.0.1:1/v1", "model": "m", "api": "moderations"})


def test_a_score_that_is_off_by_rounding_is_clamped(make):
    scorer, _ = make(lambda handler, _: handler.send(moderation(dict.fromkeys(NAMES, 1.000001))))
    assert scorer.score(["text"]) == [1.0]


def test_texts_are_checked(make):
    scorer, server = make()
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        scorer.score(["fool", 3])
    with pytest.raises(ValueError, match="2 probes and 1 responses"):
        scorer.score_exchange_categories(["a", "b"], ["fool"])
    assert server.asked == []
