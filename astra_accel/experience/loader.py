"""An experience, and the loader that hands every process its share of each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from astra_accel.core.sampler import Graph
from astra_accel.core.seeding import derive_seed

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


PAD = -1
SHUFFLE_STREAM = 1


@dataclass(frozen=True)
class Experience:
    """What was collected with the weights of one training step; the same on every process.

    Attributes:
        index: number of the training step, from 0.
        graphs: one an episode, in order.
        steps: the training examples of all graphs, in order; behind them those of a replay.
        trees: for each example which graph it came of, for one of a replay a number of its own. Examples of one tree
            share most of what a model reads for them, so they stay together.
        figures: what else there is to log of it.
    """

    index: int
    graphs: Sequence[Graph]
    steps: Sequence[Any]
    trees: Sequence[int]
    figures: Mapping[str, float] = field(default_factory=dict)


class Example(NamedTuple):
    """A training example and its share of the update's mean; without a step it is padding of a batch."""

    step: Any
    share: float


class Shard(NamedTuple):
    """One process's part of a batch, or as much of it as is stepped on at once.

    Attributes:
        batch: what ``Algorithm.step`` takes.
        share: the part's share of the mean over the whole update; the shares of all processes and of all
            parts of an update add up to 1. 0 on a process that has no example, which steps on one all the same
            so that it takes part in the collectives of the backward pass.
        ends_update: whether the optimizer steps behind it.
    """

    batch: Any
    share: float
    ends_update: bool


class Plan(NamedTuple):
    """How examples are stepped on.

    Attributes:
        rounds: each process steps once a round. The examples of each round by their indices, process by process,
            filled up with ``PAD`` to the size of a batch.
        shares: each example's share of its update.
        ends_update: for each round, whether the optimizer steps behind it.
    """

    rounds: list[list[int]]
    shares: list[float]
    ends_update: list[bool]


def plan_rounds(
    weights: Sequence[float],
    order: Sequence[int],
    *,
    batch_size: int,
    accumulation: int,
    num_processes: int,
    deal: Callable[[Sequence[int], int], Sequence[Sequence[int]]] = equal_runs,
    split: Callable[[Sequence[int]], Sequence[Sequence[int]]] = lambda hand: [hand],
) -> Plan:
    """Who steps on what, and what it counts.

    A batch is dealt out to the processes, and a process may split its hand. Five examples in the order 0 1 2 3 4,
    batches of 4 on 2 processes in equal runs, no accumulation; then the same with hands split in ones::

        rounds        [[0, 1, 2, 3], [4, PAD, PAD, PAD]]      [[0, PAD, 2, PAD], [1, PAD, 3, PAD], [4, PAD, PAD, PAD]]
        shares        [1/4, 1/4, 1/4, 1/4, 1]                 the same
        ends_update   [True, True]                            [False, True, True]

    Args:
        weights: of each example in the mean that the algorithm's step takes.
        order: the examples' indices in the order of training.
        batch_size: examples of a batch over all processes, a multiple of ``num_processes``.
        accumulation: batches an update.
        num_processes: examples of a batch are dealt out to them.
        deal: the hands of so many processes from a batch, none larger than its part of a full one.
        split: parts of a process's hand that are stepped on one after the other.
    """
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    per_rank = batch_size // num_processes
    plan = Plan([], [0.0] * len(weights), [])
    for start in range(0, len(batches), accumulation):
        update = batches[start : start + accumulation]
        total = sum(weights[index] for batch in update for index in batch)
        for index in (index for batch in update for index in batch):
            plan.shares[index] = weights[index] / total if total else 0.0
        for batch in update:
            hands = [split(hand) if hand else [] for hand in deal(batch, num_processes)]
            for number in range(max(map(len, hands))):
                parts = [list(hand[number]) if number < len(hand) else [] for hand in hands]
                plan.rounds.append([index for part in parts for index in part + [PAD] * (per_rank - len(part))])
                plan.ends_update.append(False)
        plan.ends_update[-1] = True
    return plan


class ExperienceLoader:
    """Batches of an experience, through one DataLoader that Accelerate prepares once and shards.

    Args:
        accelerator: prepares the loader.
        algorithm: collates examples; its ``weight`` says what each counts in a mean.
        batch_size: examples of a batch over all processes.
        accumulation: batches an update.
        seed: of the order of examples.
    """

    def __init__(self, accelerator: Accelerator, algorithm: Any, batch_size: int, accumulation: int, seed: int) -> None:
        self._examples = _Examples()
        self._batches = _Batches(batch_size, accelerator.num_processes, whole=accelerator.split_batches)
        self._algorithm = algorithm
        self._accumulation = accumulation
        self._num_processes = accelerator.num_processes
        self._seed = seed
        loader = DataLoader(self._examples, batch_sampler=self._batches, collate_fn=self._collate)
        self.prepared = accelerator.prepare(loader)

    def of(self, experience: Experience, epoch: int) -> Iterator[Shard]:
        """This process's shards of one pass over an experience, in an order that seed, index and epoch give.

        Trees come in random order, the examples of each together and in theirs.
        """
        weigh = getattr(self._algorithm, "weight", _one)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, SHUFFLE_STREAM, experience.index, epoch))
        plan = plan_rounds(
            [weigh(step) for step in experience.steps],
            _shuffled(experience.trees, generator),
            batch_size=self._batches.batch_size_of_all,
            accumulation=self._accumulation,
            num_processes=self._num_processes,
            deal=lambda batch, num_hands: self._dealt(batch, num_hands, experience),
            split=lambda hand: self._longest_first(self._within_budget(hand, experience), experience),
        )
        self._batches.plan = plan.rounds
        self._examples.items = [Example(step, share) for step, share in zip(experience.steps, plan.shares, strict=True)]
        for (batch, share), ends_update in zip(self.prepared, plan.ends_update, strict=True):
            yield Shard(batch, share, ends_update)

    def _dealt(self, batch: Sequence[int], num_hands: int, experience: Experience) -> list[list[int]]:
        """A batch dealt out to the processes by what they will have to read, where the algorithm can tell that."""
        if num_hands == 1 or self._num_tokens(batch, experience) is None:
            return equal_runs(batch, num_hands)
        room = self._batches.batch_size_of_all // num_hands
        return balanced_hands(
            batch, experience.trees, num_hands, room, lambda hand: self._num_tokens(hand, experience) or 0
        )

    def _within_budget(self, hand: Sequence[int], experience: Experience) -> list[list[int]]:
        """A run of examples in parts that each read no more tokens than the system's budget.

        A tree is cut only if it exceeds the budget by itself, and an example never.
        """
        budget = getattr(getattr(self._algorithm, "system", None), "token_budget", None)
        if budget is None:
            return [list(hand)]

        def fits(part: Sequence[int]) -> bool:
            num_tokens = self._num_tokens(part, experience)
            return num_tokens is None or num_tokens <= budget

        parts: list[list[int]] = [[]]
        pending = [list(hand)]  # the whole run, then its trees, then the examples of one: the last is next
        while pending:
            piece = pending.pop()
            if (len(piece) == 1 and not parts[-1]) or fits(parts[-1] + piece):
                parts[-1] += piece
            elif parts[-1]:
                parts.append([])
                pending.append(piece)
            else:
                pending += reversed(_cut(piece, experience.trees))
        return parts

    def _longest_first(self, parts: list[list[int]], experience: Experience) -> list[list[int]]:
        """The parts by what each reads, where the algorithm can tell that.

        What a part leaves to the allocator then has room for the next one, and processes that step together step on
        parts of like length.
        """
        if len(parts) == 1:
            return parts
        return sorted(parts, key=lambda part: self._num_tokens(part, experience) or 0, reverse=True)

    def _num_tokens(self, examples: Sequence[int], experience: Experience) -> int | None:
        """What a step on some examples reads; None where the algorithm can't tell."""
        count = getattr(self._algorithm, "num_tokens", None)
        return None if count is None else count([experience.steps[index] for index in examples])

    def _collate(self, items: Sequence[Example]) -> tuple[Any, float]:
        real = [item for item in items if item.step is not None] or [self._examples.items[0]._replace(share=0.0)]
        return self._algorithm.collate_fn([item.step for item in real]), sum(item.share for item in real)


def _shuffled(trees: Sequence[int], generator: torch.Generator) -> list[int]:
    """The indices of examples, tree after tree in random order."""
    members: dict[int, list[int]] = {}
    for index, tree in enumerate(trees):
        members.setdefault(tree, []).append(index)
    hands = list(members.values())
    return [index for place in torch.randperm(len(hands), generator=generator).tolist() for index in hands[place]]


def _cut(run: Sequence[int], trees: Sequence[int]) -> list[list[int]]:
    """A run of examples in its trees, or a tree in its examples."""
    by_tree = [list(members) for _, members in groupby(run, key=trees.__getitem__)]
    return by_tree if len(by_tree) > 1 else [[index] for index in run]


class _Examples(Dataset[Example]):
    """The examples of the experience that is trained on."""

    def __init__(self) -> None:
        self.items: list[Example] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return Example(None, 0.0) if index == PAD else self.items[index]


class _Batches(Sampler[list[int]]):
    """The planned batches, whole where Accelerate splits each over the processes, else rank by rank in turn."""

    def __init__(self, batch_size: int, num_processes: int, whole: bool) -> None:
        self.batch_size_of_all = batch_size
        self.batch_size = batch_size if whole else batch_size // num_processes
        self.drop_last = False
        self.plan: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.plan) * (self.batch_size_of_all // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.plan:
            for start in range(0, len(batch), self.batch_size):
                yield batch[start : start + self.batch_size]


def _one(step: Any) -> float:  # noqa: ARG001
    return 1.0
