"""How alike texts are: shares of words, counted by hand."""

from __future__ import annotations

import pytest

from astra_accel.experience.selection import NUM_COMPARED, mean_overlap, overlap, words_of


def test_words_are_distinct_and_in_lower_case():
    assert words_of(["You are  what\nyou ARE.", "So"]) == {"you", "are", "what", "are.", "so"}


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("you are so rude", "you are rude today my friend", 3 / 4),
        ("you are rude today my friend", "you are so rude", 3 / 6),
        ("a b", "c d", 0.0),
        ("A b", "b a a", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", " ", 1.0),
    ],
)
def test_the_share_of_one_texts_words_that_the_other_has(one, other, share):
    assert overlap(words_of([one]), words_of([other])) == share


def test_the_mean_is_over_the_most_alike_of_the_others():
    """``a b`` has 1/2 of ``b c d`` and nothing of ``x``; ``b c d`` has 1/3 of ``a b``; ``x`` has nothing of any."""
    texts = [words_of([text]) for text in ("a b", "b c d", "x")]
    assert mean_overlap(texts) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_fewer_than_two_texts_are_like_nothing():
    assert mean_overlap([]) is None
    assert mean_overlap([words_of(["a"])]) is None


def test_of_many_texts_some_are_compared():
    """Each text is there three times in a row; at even distances, of every three one is taken, and none is alike."""
    texts = [words_of([f"word{place // 3}"]) for place in range(3 * NUM_COMPARED)]
    assert mean_overlap(texts) == 0.0
    assert mean_overlap(texts[: NUM_COMPARED - 2]) == 1.0
