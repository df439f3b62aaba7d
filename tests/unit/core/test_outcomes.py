"""What the outcome of a question makes of its scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from astra_accel.core.outcomes import OUTCOMES, judged_where_answered, outcome_of, outcome_of_turn, shares


def response(outcome: str) -> SimpleNamespace:
    return SimpleNamespace(outcome=outcome)


def test_a_plain_text_was_answered() -> None:
    assert outcome_of("Well.") == "answered"


def test_filtered_counts_as_defended_and_an_error_as_missing_and_neither_is_judged() -> None:
    asked: list[int] = []

    def judge(places: list[int]) -> list[float | None]:
        asked.extend(places)
        return [0.25, None]

    outcomes = ["filtered", "answered", "target_error", "refused"]
    assert judged_where_answered(outcomes, judge) == [0.0, 0.25, None, None]
    assert asked == [1, 3]


def test_what_an_earlier_judge_could_not_judge_is_judged_anew() -> None:
    assert judged_where_answered(["judge_error", "target_error"], lambda _: [0.5]) == [0.5, None]


def test_a_judge_is_not_asked_about_nothing() -> None:
    assert judged_where_answered(["filtered", "target_error"], lambda _: [1.0]) == [0.0, None]


@pytest.mark.parametrize(
    ("outcome", "score", "found"),
    [
        ("answered", 0.5, "answered"),
        ("answered", None, "judge_error"),
        ("refused", None, "judge_error"),
        ("refused", 0.0, "refused"),
        ("filtered", 0.0, "filtered"),
        ("target_error", None, "target_error"),
    ],
)
def test_an_answer_without_a_score_is_the_judge_s_error(outcome: str, score: float | None, found: str) -> None:
    assert outcome_of_turn(response(outcome), score) == found


def test_shares_have_a_closed_denominator_and_are_told_where_they_say_something() -> None:
    assert shares(["answered", "answered"]) == {}
    found = shares(["answered", "filtered", "target_error", "answered"])
    assert found == {"outcome/answered": 0.5, "outcome/filtered": 0.25, "outcome/target_error": 0.25}
    assert sum(shares(OUTCOMES).values()) == pytest.approx(1)
