"""Forests of token sequences, by hand and against walks from parent to parent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_accel.models.forward.prefix_tree import (
    Pack,
    num_distinct_tokens,
    num_shared,
    pack_sequences,
    shared_prefixes,
)

PLENTY = 10_000
A, B, C, D, E = range(5)

# Three different tokens, so that prefixes are shared all the time.
tokens = st.integers(0, 2)
pairs = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=5), st.lists(tokens, max_size=5)), min_size=1, max_size=8
)


def packs_of(pairs, token_budget: int = PLENTY) -> list[Pack]:
    return pack_sequences([context for context, _ in pairs], [continuation for _, continuation in pairs], token_budget)


def prefixes(sequences) -> set[tuple[int, ...]]:
    return {tuple(ids[:length]) for ids in sequences for length in range(1, len(ids) + 1)}


def read_by(pack: Pack, pairs) -> list[list[int]]:
    """The inputs of a pack's sequences: all tokens but the last."""
    return [[*pairs[index][0], *pairs[index][1]][:-1] for index in pack.sequences]


# --- By hand ------------------------------------------------------------------------------------------------


def test_the_example_of_the_docstring():
    (pack,) = packs_of([([A, B], [C, D]), ([A, B], [E])])
    assert pack.input_ids == [A, B, C]
    assert pack.position_ids == [0, 1, 2]
    assert pack.parents == [-1, 0, 1]
    assert pack.subtree_end == [3, 3, 3]
    assert pack.scored_nodes == [1, 2]
    assert pack.edges == [(0, C), (1, D), (0, E)]
    assert pack.sequences == {0: [0, 1], 1: [2]}
    assert pack.last_nodes == {0: 2, 1: 1}


def test_siblings_their_descendants_and_a_stranger():
    """::

    a - b - c
      - d - e
    b
    """
    (pack,) = packs_of([([B], [A]), ([A, D, E], [A]), ([A], [B, C, A])])
    assert pack.input_ids == [A, B, C, D, E, B]
    assert pack.position_ids == [0, 1, 2, 1, 2, 0]
    assert pack.parents == [-1, 0, 1, 0, 3, -1]
    assert pack.subtree_end == [5, 3, 3, 5, 5, 6]
    assert pack.scored_nodes == [0, 1, 2, 4, 5]
    assert pack.edges == [(0, B), (1, C), (2, A), (3, A), (4, A)]
    assert pack.sequences == {2: [0, 1, 2], 1: [3], 0: [4]}
    assert [pack.path(index) for index in range(3)] == [[5], [0, 3, 4], [0, 1, 2]]
    assert pack.ancestors().int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_a_sequence_that_is_the_beginning_of_another():
    (pack,) = packs_of([([A], [B]), ([A], [B, C]), ([A, B, C], [D])])
    assert pack.input_ids == [A, B, C]
    assert pack.sequences == {0: [0], 1: [0, 1], 2: [2]}
    assert pack.edges == [(0, B), (1, C), (2, D)]


def test_the_same_sequence_twice_is_read_and_scored_once():
    (pack,) = packs_of([([A, B], [C]), ([A, B], [C]), ([A], [B, C])])
    assert pack.input_ids == [A, B]
    assert pack.sequences == {0: [0], 1: [0], 2: [1, 0]}
    assert pack.edges == [(0, C), (1, B)]
    assert pack.scored_nodes == [1, 0]


def test_without_a_continuation_nothing_is_read():
    (pack,) = packs_of([([A, B, C], []), ([D], [E])])
    assert (pack.input_ids, list(pack.sequences)) == ([D], [1])
    assert packs_of([([A], [])]) == []
    assert packs_of([]) == []


def test_an_empty_context_is_named_even_where_nothing_is_scored():
    with pytest.raises(ValueError, match="context 1 is empty"):
        packs_of([([A], [B]), ([], [])])


def test_a_sequence_longer_than_the_budget_has_a_pack_of_its_own():
    packs = packs_of([([B], [C]), ([A] * 9, [B]), ([C], [D])], token_budget=2)
    assert [pack.input_ids for pack in packs] == [[A] * 9, [B, C]]


def test_packs_are_about_equally_full():
    """Six sequences of 10 tokens that share nothing: a budget of 40 needs two packs, of 30 each and not 40 and 20."""
    packs = packs_of([([first] * 10, [0]) for first in range(6)], token_budget=40)
    assert [len(pack.input_ids) for pack in packs] == [30, 30]


def test_neighbours_of_one_tree_share_a_pack():
    """Given in turns, the sequences of two contexts come to one pack each."""
    pairs = [([context] * 8, [token, token]) for token in range(2, 5) for context in (A, B)]
    packs = packs_of(pairs, token_budget=12)
    assert [sorted(pack.sequences) for pack in packs] == [[0, 2, 4], [1, 3, 5]]
    assert [len(pack.input_ids) for pack in packs] == [11, 11]


# --- Whatever the sequences ---------------------------------------------------------------------------------


@given(pairs, st.integers(1, 40))
def test_paths_read_the_sequences_and_edges_score_their_continuations(pairs, token_budget):
    packs = packs_of(pairs, token_budget)
    assert sorted(index for pack in packs for index in pack.sequences) == [
        index for index, (_, continuation) in enumerate(pairs) if continuation
    ]
    for pack in packs:
        for index, edges in pack.sequences.items():
            context, continuation = pairs[index]
            path = pack.path(index)
            assert [pack.input_ids[node] for node in path] == [*context, *continuation][:-1]
            assert [pack.position_ids[node] for node in path] == list(range(len(path)))
            # Each token of the continuation is scored by the node right before it.
            nodes = [pack.scored_nodes[pack.edges[edge][0]] for edge in edges]
            assert nodes == path[len(context) - 1 :]
            assert [pack.edges[edge][1] for edge in edges] == continuation
        assert len(set(pack.edges)) == len(pack.edges)
        assert {edge for edges in pack.sequences.values() for edge in edges} == set(range(len(pack.edges)))
        assert {row for row, _ in pack.edges} == set(range(len(pack.scored_nodes)))


@given(pairs, st.integers(1, 40))
def test_packs_keep_to_the_budget_and_read_no_prefix_twice(pairs, token_budget):
    packs = packs_of(pairs, token_budget)
    for pack in packs:
        read = read_by(pack, pairs)
        assert len(pack.input_ids) == len(prefixes(read))
        # Only what is longer by itself may be more, and then shares a pack at most with what it begins with.
        assert len(pack.input_ids) <= max(token_budget, *map(len, read))
    everything = [[*context, *continuation][:-1] for context, continuation in pairs if continuation]
    if len(prefixes(everything)) <= token_budget:
        assert len(packs) == (1 if everything else 0)


@given(pairs)
def test_ancestors_are_those_of_a_walk_from_parent_to_parent(pairs):
    for pack in packs_of(pairs):
        found = pack.ancestors()
        for node in range(len(pack.input_ids)):
            walk = {node}
            while pack.parents[min(walk)] >= 0:
                walk.add(pack.parents[min(walk)])
            assert set(found[node].nonzero().flatten().tolist()) == walk


@given(st.lists(st.lists(tokens, max_size=6), max_size=10))
def test_distinct_tokens_are_distinct_prefixes(sequences):
    assert num_distinct_tokens(sequences) == len(prefixes(sequences))


@given(st.lists(tokens, max_size=8), st.lists(tokens, max_size=8), st.lists(tokens, max_size=8))
def test_the_shared_prefix_is_as_long_as_can_be(start, one, other):
    one, other = start + one, start + other
    length = num_shared(one, other)
    assert length >= len(start)
    assert one[:length] == other[:length]
    assert length in (len(one), len(other)) or one[length] != other[length]


# --- Shared prefixes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([], []),
        ([(A, B, C)], [3]),
        ([(A, B, C), (A, B, C)], [3]),
        ([(A, B, C, D), (A, B, E)], [2, 2]),
        # Less than half of the longer one: each by itself.
        ([(A, B), (A, B, C, D, E)], [2, 5]),
        ([(A, B, C, D), (A, E, C, D)], [4, 4]),
        # Just half.
        ([(A, B, C, D), (A, B, D, C)], [2, 2]),
        # The third would leave the first two too little.
        ([(A, B, C, D, E, A), (A, B, C, D, E, B), (A, B, D)], [5, 5, 3]),
        ([(B, A, A), (A, B, C, D), (B, A, C), (A, B, C, E)], [2, 3, 2, 3]),
    ],
)
def test_shared_prefixes(sequences, expected):
    shared = shared_prefixes(sequences)
    assert [shared[ids] for ids in dict.fromkeys(sequences)] == expected
    assert shared_prefixes(sequences[::-1]) == shared


@given(st.lists(st.lists(tokens, min_size=1, max_size=9).map(tuple), max_size=9))
def test_shared_prefixes_are_the_longest_common_ones_and_half_of_each_at_least(sequences):
    shared = shared_prefixes(sequences)
    assert set(shared) == set(sequences)
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for ids, length in shared.items():
        assert 0 < length <= len(ids) <= 2 * length
        groups.setdefault(ids[:length], []).append(ids)
    for prefix, group in groups.items():
        assert {ids[: len(prefix)] for ids in group} == {prefix}
        # All have one token more in common only where that is all of the only one.
        assert len({ids[: len(prefix) + 1] for ids in group}) > 1 or group == [prefix]
