"""Token sequences of a batch as a forest in which every distinct prefix appears once.

The (context, continuation) sequences of rollout trees share most of their tokens: siblings their context, later turns
their ancestors. Laid out in depth-first order, with the depth as position and attention only to ancestors, one forward
over the forest gives what one forward per sequence would.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

Tokens = Sequence[int]
"""Token ids."""
Ids = tuple[int, ...]
"""Token ids as a key."""

TOKEN_BUDGET = 1024
"""The most distinct tokens of one packed forward, if the caller names none. A choice that was not measured."""


@dataclass
class Pack:
    """Some sequences of a batch as one row of distinct tokens.

    Two sequences, ``a b | c d`` and ``a b | e``, where the bar ends the context. The last token of a sequence is
    only predicted, so it is no input unless another sequence continues after it::

        node           0  1  2
        input_ids      a  b  c
        position_ids   0  1  2
        parents       -1  0  1
        subtree_end    3  3  3        node j is node i or an ancestor of it iff j <= i < subtree_end[j]
        scored_nodes   1  2           the nodes where the head runs
        edges          (0, c)  (1, d)  (0, e)       (index into scored_nodes, token that is predicted there)
        sequences      {0: [0, 1], 1: [2]}          the edges of each sequence's continuation
        last_nodes     {0: 2, 1: 1}                 the node that predicts each sequence's last token

    Attributes:
        input_ids: the distinct tokens in depth-first order.
        position_ids: their depths.
        parents: for each node, the one before it in its sequences; -1 for a first token.
        subtree_end: for each node, where its subtree ends in that order.
        scored_nodes: the nodes that predict a token of a continuation.
        edges: the distinct predictions.
        sequences: for each sequence of this pack, by its index in the batch, the edges of its continuation.
        last_nodes: for each sequence of this pack, the node of its last input.
    """

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    subtree_end: list[int] = field(default_factory=list)
    scored_nodes: list[int] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    sequences: dict[int, list[int]] = field(default_factory=dict)
    last_nodes: dict[int, int] = field(default_factory=dict)

    def path(self, index: int) -> list[int]:
        """The nodes of all inputs of a sequence, first token first."""
        return self.path_to(self.last_nodes[index])

    def path_to(self, node: int) -> list[int]:
        """All ancestors of a node, then the node itself."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def ancestors(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """``[nodes, nodes]`` bool: whether the column's node is the row's node or an ancestor of it."""
        node_N = torch.arange(len(self.input_ids), device=device)
        end_N = torch.tensor(self.subtree_end, device=device)
        return (node_N[None, :] <= node_N[:, None]) & (node_N[:, None] < end_N[None, :])


def pack_sequences(contexts: Sequence[Tokens], continuations: Sequence[Tokens], token_budget: int) -> list[Pack]:
    """Packs of at most ``token_budget`` distinct tokens; a sequence that is longer by itself gets its own pack.

    Sequences are taken in lexicographic order, which is depth-first order, so that a pack ends between subtrees and
    shares all that neighbours share; packs are about equally full. Sequences without a continuation are left out.

    Raises:
        ValueError: a context is empty.
    """
    for index, context in enumerate(contexts):
        if len(context) == 0:
            raise ValueError(f"context {index} is empty: its continuation's first token has nothing to follow")
    full = {
        index: (*context, *continuation)
        for index, (context, continuation) in enumerate(zip(contexts, continuations, strict=True))
        if len(continuation) > 0
    }
    order = sorted(full, key=full.__getitem__)
    packs = []
    for members in _split([full[index][:-1] for index in order], token_budget):
        packs.append(_pack({order[member]: full[order[member]] for member in members}, contexts))
    return packs


def num_distinct_tokens(sequences: Sequence[Tokens]) -> int:
    """The number of nodes in the forest of some sequences."""
    ordered = sorted(map(tuple, sequences))
    return sum(len(ids) - num_shared(before, ids) for before, ids in zip([(), *ordered], ordered, strict=False))


def num_shared(one: Tokens, other: Tokens) -> int:
    """The length of the common prefix."""
    longest = min(len(one), len(other))
    if one[:longest] == other[:longest]:
        return longest
    # The first length at which the prefixes differ; slices compare faster than a loop over tokens.
    return bisect_left(range(longest), True, key=lambda length: one[: length + 1] != other[: length + 1])


def shared_prefixes(sequences: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """The length of each distinct sequence's prefix that is worth storing once for it and others.

    Sequences form a group if at least half of the longest is common to all of them; that part is what they share. A
    sequence that is alone shares its whole length, with whatever continues from it.
    """
    shared: dict[tuple[int, ...], int] = {}
    group: list[tuple[int, ...]] = []
    common = longest = 0
    for ids in sorted(set(sequences)):
        with_it = min(common, num_shared(group[-1], ids)) if group else 0
        if not group or 2 * with_it < max(longest, len(ids)):
            group, with_it, longest = [], len(ids), 0
        group.append(ids)
        common, longest = with_it, max(longest, len(ids))
        shared.update(dict.fromkeys(group, common))
    return shared


def _split(inputs: Sequence[tuple[int, ...]], token_budget: int) -> list[list[int]]:
    """Group neighbours of a sorted list: as many groups as the budget needs, all about equally full."""
    if not inputs:
        return []
    total = num_distinct_tokens(inputs)
    num_packs = -(-total // token_budget)
    fill = -(-total // num_packs)
    groups: list[list[int]] = [[]]
    size = 0
    before: tuple[int, ...] = ()
    for member, ids in enumerate(inputs):
        added = len(ids) - num_shared(before, ids)
        # A sequence that crosses the mark stays here if at most half of it is beyond, as far as the budget allows.
        if groups[-1] and (size + added > token_budget or size + added / 2 > fill):
            groups.append([])
            size, added = 0, len(ids)
        groups[-1].append(member)
        size, before = size + added, ids
    return groups


def _pack(full: dict[int, tuple[int, ...]], contexts: Sequence[Tokens]) -> Pack:
    """Make one pack of sequences that come in lexicographic order."""
    pack = Pack()
    path: list[int] = []  # the nodes of the previous sequence, by depth
    before: tuple[int, ...] = ()
    row_of: dict[int, int] = {}
    edge_of: dict[tuple[int, int], int] = {}
    for index, ids in full.items():
        inputs = ids[:-1]
        shared = num_shared(before, inputs)
        _close(pack, path[shared:])
        path = path[:shared]
        for depth in range(shared, len(inputs)):
            pack.parents.append(path[-1] if path else -1)
            path.append(len(pack.input_ids))
            pack.input_ids.append(inputs[depth])
            pack.position_ids.append(depth)
            pack.subtree_end.append(0)
        before = inputs
        pack.last_nodes[index] = path[-1]
        pack.sequences[index] = []
        for depth in range(len(contexts[index]) - 1, len(inputs)):
            row = row_of.setdefault(path[depth], len(row_of))
            pack.sequences[index].append(edge_of.setdefault((row, ids[depth + 1]), len(edge_of)))
    _close(pack, path)
    pack.scored_nodes, pack.edges = list(row_of), list(edge_of)
    return pack


def _close(pack: Pack, nodes: Sequence[int]) -> None:
    """End the subtrees of these nodes here."""
    for node in nodes:
        pack.subtree_end[node] = len(pack.input_ids)


def segment_sum(values_EX: torch.Tensor, segments_E: torch.Tensor, num_segments: int) -> torch.Tensor:
    """The sum of the rows of each segment, ``[segments, ...]`` of the values' type; 0 if a segment has no row.

    On a CPU ``index_add_`` adds the rows in order; on a CUDA device it adds atomically, in an order that differs from
    run to run. There ``index_put_`` with ``accumulate`` first sorts the rows by segment, a stable sort, and adds each
    segment's in order: PyTorch lists it as nondeterministic only on CPUs (``torch.use_deterministic_algorithms``). Rows
    of 16 bits are added in their own type, so pass float32 where that matters.

    Args:
        values_EX: rows ``[E, ...]`` of any shape.
        segments_E: the segment of each row, int64, in any order.
        num_segments: the number of segments.
    """
    total_SX = values_EX.new_zeros(num_segments, *values_EX.shape[1:])
    if total_SX.is_cuda:
        return total_SX.index_put_((segments_E,), values_EX, accumulate=True)
    return total_SX.index_add_(0, segments_E, values_EX)
