from hypothesis import given
from hypothesis import strategies as st

from astra_accel.experience.loader import balanced_shards, contiguous_shards


def costs(tokens):
    return lambda shard: sum(tokens[index] for index in shard)


def test_equal_runs():
    assert contiguous_shards([5, 3, 1, 0, 2], 2) == [[5, 3, 1], [0, 2]]
    assert contiguous_shards([7], 3) == [[7], [], []]


def test_the_costliest_trees_come_first_and_to_the_least_loaded_hand():
    # Trees 0: 90 tokens, 1: 10, 2: 60, 3: 40. Dealt as 90 | 60, then 40 to the 60, then 10 to the 90.
    tokens, trees = [90, 10, 60, 40], [0, 1, 2, 3]
    assert balanced_shards([0, 1, 2, 3], trees, 2, 2, costs(tokens)) == [[0, 1], [2, 3]]
    # In another order the equal runs would be 90 + 60 against 10 + 40.
    assert balanced_shards([0, 2, 1, 3], trees, 2, 2, costs(tokens)) == [[0, 1], [2, 3]]


def test_a_hand_has_no_more_examples_than_there_is_room_for():
    tokens = [9, 1, 1, 1]
    assert sorted(map(len, balanced_shards([0, 1, 2, 3], [0, 1, 2, 3], 2, 2, costs(tokens)))) == [2, 2]
    assert balanced_shards([0, 1, 2, 3], [0, 1, 2, 3], 2, 3, costs(tokens)) == [[0], [1, 2, 3]]


def test_a_large_tree_is_cut_where_that_is_quicker():
    assert balanced_shards([0, 1, 2, 3], [0, 0, 0, 0], 2, 4, costs([5] * 4)) == [[0, 1], [2, 3]]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 100)), min_size=1, max_size=8), st.integers(1, 4), st.data()
)
def test_everything_is_dealt_once_and_never_worse_than_in_equal_runs(sizes, num_shards, data):
    trees = [tree for tree, (count, _) in enumerate(sizes) for _ in range(count)]
    tokens = [cost for count, cost in sizes for _ in range(count)]
    batch = list(range(len(trees)))
    largest = data.draw(st.integers(-(-len(batch) // num_shards), len(batch)))

    rank_shards = balanced_shards(batch, trees, num_shards, largest, costs(tokens))

    assert sorted(index for shard in rank_shards for index in shard) == batch
    assert len(rank_shards) == num_shards
    assert max(map(len, rank_shards)) <= largest
    assert all(shard == sorted(shard) for shard in rank_shards)
    cost = costs(tokens)
    assert max(map(cost, rank_shards)) <= max(map(cost, contiguous_shards(batch, num_shards)))
