"""How a batch is dealt out to processes, none of which is to wait for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

Cost = Callable[[Sequence[int]], int]


def equal_runs(batch: Sequence[int], num_hands: int) -> list[list[int]]:
    """A batch in runs of equal length, the first ones longer by 1 where that does not come out even."""
    length, longer = divmod(len(batch), num_hands)
    starts = [hand * length + min(hand, longer) for hand in range(num_hands + 1)]
    return [list(batch[start:end]) for start, end in pairwise(starts)]


def balanced_hands(
    batch: Sequence[int], trees: Sequence[int], num_hands: int, largest: int, cost: Cost
) -> list[list[int]]:
    """A batch dealt out so that the hand that costs most costs little.

    Trees are dealt out whole, the costliest first, each to the hand that costs least so far and has room for it. Where
    cutting the batch in equal runs is better, as for one large tree, that is done instead; so it is never worse.

    Args:
        batch: examples, those of a tree one after the other.
        trees: for each example of the experience the number of its tree.
        num_hands: hands, some of which may stay empty.
        largest: examples of a hand at most; there is room for all.
        cost: of examples that are stepped on together.
    """
    runs = equal_runs(batch, num_hands)
    whole = _whole_trees(batch, trees, num_hands, largest, cost)
    if whole is None or _slowest(runs, cost) <= _slowest(whole, cost):
        return runs
    return whole


def _whole_trees(
    batch: Sequence[int], trees: Sequence[int], num_hands: int, largest: int, cost: Cost
) -> list[list[int]] | None:
    """The trees of a batch, each in one hand; None where they don't fit so."""
    groups = [list(members) for _, members in groupby(batch, key=trees.__getitem__)]
    costs = [cost(group) for group in groups]
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    loads = [0] * num_hands
    for number in sorted(range(len(groups)), key=lambda number: -costs[number]):
        with_room = [hand for hand in range(num_hands) if len(hands[hand]) + len(groups[number]) <= largest]
        if not with_room:
            return None
        hand = min(with_room, key=loads.__getitem__)
        hands[hand] += groups[number]
        loads[hand] += costs[number]
    place = {example: index for index, example in enumerate(batch)}
    return [sorted(hand, key=place.__getitem__) for hand in hands]


def _slowest(hands: Sequence[Sequence[int]], cost: Cost) -> int:
    return max(cost(hand) for hand in hands if hand)
