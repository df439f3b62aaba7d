"""Which contexts continue from what was read, and which share a prefix, by hand.

That nothing changes by it is in ``tests/invariant/test_carried_caches.py``.
"""

from __future__ import annotations

import pytest

from astra_accel.models.decoding.kv_cache import CacheBatch, CachedRow, PrefixCache, SharedPrefixes
from astra_accel.models.decoding.prefill import (
    PrefillPlan,
    PrefillRequest,
    PrefixHit,
    ScoreRequest,
    match,
    plan_prefill,
)
from astra_accel.models.forward.prefix_tree import Ids


def read(*rows: tuple[Ids, Ids]) -> tuple[PrefixCache, list[CachedRow]]:
    """A memory of rows, each a prefix and what was read after it, and the rows."""
    prefixes = SharedPrefixes.from_ids([prefix for prefix, _ in rows])
    places = [prefixes.ids.index(prefix) for prefix, _ in rows]
    batch = CacheBatch([[*prefix, *rest] for prefix, rest in rows], prefixes, places, num_slots=8)
    memory = PrefixCache()
    memory.replace(batch.rows())
    return memory, batch.rows()


@pytest.mark.parametrize(
    ("scored", "num_known"),
    [
        (None, 3),  # the last token says what comes next
        (ScoreRequest(2, (3, 4, 5)), 1),  # the second predicts the third
        (ScoreRequest(4, (5,)), 3),
    ],
)
def test_what_predicts_something_wanted_is_read(scored: ScoreRequest | None, num_known: int) -> None:
    assert PrefillRequest((1, 2, 3, 4), scored).num_known == num_known


@pytest.mark.parametrize(
    ("context", "scored", "length"),
    [
        ((1, 2, 3, 4, 5, 6), None, 4),
        ((1, 2, 3, 4), None, 3),  # all of it was read, but its last token is read again
        ((1, 2, 3, 8, 8, 8), None, 3),  # just half
        ((1, 2, 3, 8, 8, 8, 8), None, None),
        ((2, 3, 4), None, None),
        ((1, 2, 3, 4), ScoreRequest(3, (4, 5)), 2),
        ((1, 2, 3, 4), ScoreRequest(2, (3, 4, 5)), None),  # a quarter
    ],
)
def test_a_context_continues_a_row_that_has_half_of_it(
    context: Ids, scored: ScoreRequest | None, length: int | None
) -> None:
    memory, (row,) = read(((1, 2), (3, 4, 9)))
    assert match(PrefillRequest(context, scored), memory) == (None if length is None else PrefixHit(row, length))


def test_without_a_memory_nothing_continues() -> None:
    assert match(PrefillRequest((1, 2, 3)), PrefixCache()) is None


def test_new_contexts_share_a_prefix_and_others_keep_that_of_their_row() -> None:
    memory, rows = read(((1, 2), (3, 4, 9)), ((5, 6, 7, 8), (1,)))
    continued, cut, one, other, alone = map(
        PrefillRequest, [(1, 2, 3, 4, 5, 6), (5, 6, 7, 9), (7, 7, 7, 1), (7, 7, 7, 2), (8, 8)]
    )
    assert plan_prefill([continued, cut, one, other, alone], memory) == {
        continued: PrefillPlan(PrefixHit(rows[0], 4), (1, 2)),
        cut: PrefillPlan(PrefixHit(rows[1], 3), (5, 6, 7)),  # it leaves the row within the prefix
        one: PrefillPlan(None, (7, 7, 7)),
        other: PrefillPlan(None, (7, 7, 7)),
        alone: PrefillPlan(None, (8, 8)),
    }


def test_contexts_that_share_less_than_half_share_nothing() -> None:
    one, other = PrefillRequest((7, 1, 1)), PrefillRequest((7, 2, 2))
    assert plan_prefill([one, other], PrefixCache()) == {
        one: PrefillPlan(None, one.context),
        other: PrefillPlan(None, other.context),
    }
