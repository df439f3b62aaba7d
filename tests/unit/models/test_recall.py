"""What was said in a rollout is found again, and nothing else is."""

from __future__ import annotations

from astra_accel.models.recall import Recall


def test_what_was_kept_is_found():
    recall = Recall()
    recall.keep((1, 2), (3, 4), (-0.5, -1.5))
    recall.keep((1, 2), (3, 5), (-0.5, -2.5))
    recall.keep((1,), (2, 3), (-7.0, -0.5))
    found = recall.find([(1, 2), (1,), (1, 2)], [(3, 5), (2, 3), (3, 4)])
    assert found == [(-0.5, -2.5), (-7.0, -0.5), (-0.5, -1.5)]


def test_the_beginning_of_a_longer_continuation_is_found():
    recall = Recall()
    recall.keep((1,), (2, 3, 4), (-1.0, -2.0, -3.0))
    assert recall.find([(1,)] * 3, [(2,), (2, 3), ()]) == [(-1.0,), (-1.0, -2.0), ()]


def test_what_was_not_said_is_none():
    recall = Recall()
    recall.keep((1,), (2, 3), (-1.0, -2.0))
    # Longer, another token, another context, and a context that only splits the same tokens elsewhere.
    assert recall.find([(1,), (1,), (5,), (1, 2)], [(2, 3, 4), (2, 9), (2, 3), (3,)]) == [None] * 4
    assert Recall().find([(1,)], [(2,)]) == [None]
    assert Recall().find([], []) == []


def test_the_last_word_counts():
    recall = Recall()
    recall.keep((1,), (2,), (-1.0,))
    recall.keep((1,), (2,), (-3.0,))
    assert recall.find([(1,)], [(2,)]) == [(-3.0,)]


def test_cleared_is_forgotten():
    recall = Recall()
    recall.keep((1,), (2,), (-1.0,))
    recall.clear()
    assert recall.find([(1,)], [(2,)]) == [None]
