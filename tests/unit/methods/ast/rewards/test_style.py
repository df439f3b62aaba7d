"""Length and repetition, counted by hand."""

from __future__ import annotations

import pytest

from astra_accel.methods.ast.rewards.term import Turns
from astra_accel.methods.ast.rewards.terms import Length, Repetition


def turns(*probes: str) -> Turns:
    return Turns(None, [""] * len(probes), probes, [""] * len(probes))


def test_length_is_in_characters():
    assert Length().values(turns("", "four", "été 🙂")) == [0.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("abc", 0.0),
        ("abcd", 0.0),
        # abca bcab cabc | abca bcab cabc: 3 of 6.
        ("abcabcabc", 3 / 6),
        # aaaa, five times: 4 of 5.
        ("aaaaaaaa", 4 / 5),
        # "no n" "o no" " no " | "no n" "o no": 2 of 5.
        ("no no no", 2 / 5),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(text, share):
    assert Repetition().values(turns(text)) == [pytest.approx(share)]


def test_a_plain_sentence_repeats_little_and_a_loop_much():
    plain, loop = Repetition().values(
        turns("My neighbour borrowed the ladder and never said a word.", "I am sad. " * 6)
    )
    assert plain == 0.0
    assert loop == pytest.approx(1 - 10 / 57)
