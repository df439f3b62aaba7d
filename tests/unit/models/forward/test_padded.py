"""Batches of sequences of similar length, padded on the left, and the head where it is needed."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from astra_accel.models.forward.padded import by_length, cheapest_groups, forward_logits, left_padded, positions
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny

CPU = torch.device("cpu")

lengths = st.lists(st.integers(1, 40), max_size=30)


@given(lengths, st.integers(1, 8), st.none() | st.integers(1, 120))
def test_groups_are_as_large_as_the_limits_allow(lengths, max_rows, max_tokens):
    groups = list(by_length(lengths, max_rows, max_tokens))
    rows = [index for group in groups for index in group]
    # Every row once, shortest first, rows of one length in their order.
    assert rows == sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    for group in groups:
        padded = max(lengths[index] for index in group) * len(group)
        assert 1 <= len(group) <= max_rows
        assert max_tokens is None or padded <= max_tokens or len(group) == 1
    # A group ended only because the next row would have broken a limit.
    for group, following in itertools.pairwise(groups):
        padded = lengths[following[0]] * (len(group) + 1)
        assert len(group) == max_rows or (max_tokens is not None and padded > max_tokens)


def test_groups_by_hand():
    """Two rows of 3 are 6 tokens; a third row, of 4, would make 12. The row of 20 is too long and alone."""
    assert list(by_length([4, 20, 3, 3], max_rows=3, max_tokens=8)) == [[2, 3], [0], [1]]


def test_a_group_may_fill_the_budget():
    assert list(by_length([4, 4, 4], max_rows=9, max_tokens=8)) == [[0, 1], [2]]


def test_no_rows():
    assert list(by_length([], max_rows=4)) == []


# --- The cheapest groups ------------------------------------------------------------------------------------


def cost(groups: list[list[int]], lengths: list[int], price: float) -> float:
    return sum(price + len(group) * max(lengths[row] for row in group) for group in groups)


def partitions(pieces: list[list[int]], max_rows: int) -> list[list[list[int]]]:
    """Every way to join neighbours to groups of at most ``max_rows``."""
    ways = []
    for cuts in itertools.product([False, True], repeat=len(pieces) - 1):
        groups = [list(pieces[0])]
        for piece, cut in zip(pieces[1:], cuts, strict=True):
            if cut:
                groups.append([])
            groups[-1] += piece
        if all(len(group) <= max_rows for group in groups):
            ways.append(groups)
    return ways


@given(
    st.dictionaries(st.integers(1, 30), st.integers(1, 3), min_size=1, max_size=6),
    st.integers(1, 9),
    st.sampled_from([0, 1, 10, 100]),
    st.randoms(use_true_random=False),
)
def test_no_grouping_of_neighbours_is_cheaper(contexts, max_rows, price, draw):
    """Contexts of different lengths, each of them of some rows, in any order."""
    lengths = [length for length, num_rows in contexts.items() for _ in range(num_rows)]
    draw.shuffle(lengths)
    groups = cheapest_groups(lengths, lengths, max_rows, price)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert max(map(len, groups)) <= max_rows
    pieces = []
    for length in sorted(contexts):
        rows = [row for row, other in enumerate(lengths) if other == length]
        pieces += [rows[at : at + max_rows] for at in range(0, len(rows), max_rows)]
        if len(rows) <= max_rows:
            assert any(set(rows) <= set(group) for group in groups)
    assert cost(groups, lengths, price) == min(cost(way, lengths, price) for way in partitions(pieces, max_rows))


def test_a_long_row_is_worth_a_group_of_its_own():
    """Together three rows cost 3 x 50, and apart 2 x 10 + 50; a second group is worth less than the 80 between."""
    lengths = [10, 50, 10]
    assert cheapest_groups(lengths, "abc", max_rows=9, price=79) == [[0, 2], [1]]
    assert cheapest_groups(lengths, "abc", max_rows=9, price=81) == [[0, 2, 1]]


def test_at_no_price_only_one_length_shares_a_group():
    groups = cheapest_groups([4, 2, 4, 3, 2, 4], "abcdef", max_rows=2, price=0.0)
    assert sorted(map(sorted, groups)) == [[0], [1, 4], [2, 5], [3]]


def test_at_any_price_groups_are_full():
    """Rows of one context are not split, whatever the price: 3 + 3 and 2 rows of three contexts, at most 5 a group."""
    assert sorted(map(len, cheapest_groups(list(range(7)), range(7), max_rows=3, price=math.inf))) == [1, 3, 3]
    groups = cheapest_groups([9, 9, 9, 5, 5, 5, 7, 7], "aaabbbcc", max_rows=5, price=math.inf)
    assert sorted(map(sorted, groups)) == [[0, 1, 2, 6, 7], [3, 4, 5]]


def test_no_rows_no_groups():
    assert cheapest_groups([], [], max_rows=4, price=1.0) == []


# --- Padding ------------------------------------------------------------------------------------------------


def test_left_padding_by_hand():
    ids, mask = left_padded([[7, 8, 9], [0, 5], []], CPU)
    assert ids.tolist() == [[7, 8, 9], [0, 0, 5], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)


def test_positions_count_the_real_tokens():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]])
    assert positions(mask)[:2].tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert positions(mask)[2, [1, 3]].tolist() == [0, 1]


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_the_head_runs_at_the_last_positions_alone(architecture):
    model, _ = build_tiny(architecture)
    ids = torch.arange(24).reshape(2, 12)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    with torch.no_grad():
        last = forward_logits(model, 3, input_ids=ids, attention_mask=torch.ones_like(ids))
        whole = model(input_ids=ids).logits
    assert seen == [3, 12]
    torch.testing.assert_close(last, whole[:, -3:], rtol=0, atol=1e-5)


class WithoutPositions(torch.nn.Module):
    """Takes neither position ids nor the number of logits to keep, as some recurrent models."""

    config = PreTrainedConfig()

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=(input_ids * attention_mask)[..., None].float())


def test_models_are_given_only_what_they_take():
    ids, mask = left_padded([[1, 2, 3], [5]], CPU)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
    assert forward_logits(WithoutPositions(), 2, **inputs)[..., 0].tolist() == [[2, 3], [0, 5]]
