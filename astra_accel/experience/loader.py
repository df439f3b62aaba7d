"""An experience, and the loader that gives every process its micro-batches of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from astra_accel.core.optional import CountsStepTokens, WeighsExamples, offers
from astra_accel.core.sampler import Graph
from astra_accel.core.seeding import derive_seed

PAD = -1
SHUFFLE_STREAM = 1

Cost = Callable[[Sequence[int]], int]


def contiguous_shards(batch: Sequence[int], num_shards: int) -> list[list[int]]:
    """Cut a batch into runs of equal length; if it does not divide evenly, the first ones are longer by 1."""
    length, longer = divmod(len(batch), num_shards)
    starts = [shard * length + min(shard, longer) for shard in range(num_shards + 1)]
    return [list(batch[start:end]) for start, end in pairwise(starts)]


def balanced_shards(
    batch: Sequence[int], trees: Sequence[int], num_shards: int, largest: int, cost: Cost
) -> list[list[int]]:
    """Shard a batch so that the costliest shard costs little.

    Trees stay whole: from the costliest on, each goes to the cheapest shard so far that has room. If contiguous shards
    are better, as for one large tree, they are returned instead, so this is never worse.

    Args:
        batch: the examples, with those of a tree next to one another.
        trees: the tree of each example of the experience.
        num_shards: the number of shards, some of which may stay empty.
        largest: the maximum number of examples in a shard; there is room for all.
        cost: gives the cost of examples that are computed together.
    """
    contiguous = contiguous_shards(batch, num_shards)
    whole = _whole_trees(batch, trees, num_shards, largest, cost)
    if whole is None or _slowest(contiguous, cost) <= _slowest(whole, cost):
        return contiguous
    return whole


def _whole_trees(
    batch: Sequence[int], trees: Sequence[int], num_shards: int, largest: int, cost: Cost
) -> list[list[int]] | None:
    """Shard a batch by whole trees; None if they don't fit."""
    groups = [list(members) for _, members in groupby(batch, key=trees.__getitem__)]
    costs = [cost(group) for group in groups]
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [0] * num_shards
    for number in sorted(range(len(groups)), key=lambda number: -costs[number]):
        with_room = [shard for shard in range(num_shards) if len(shards[shard]) + len(groups[number]) <= largest]
        if not with_room:
            return None
        shard = min(with_room, key=loads.__getitem__)
        shards[shard] += groups[number]
        loads[shard] += costs[number]
    place = {example: index for index, example in enumerate(batch)}
    return [sorted(shard, key=place.__getitem__) for shard in shards]


def _slowest(shards: Sequence[Sequence[int]], cost: Cost) -> int:
    return max(cost(shard) for shard in shards if shard)


@dataclass(frozen=True)
class Experience:
    """The data collected with the weights of one training step; the same on every process.

    Attributes:
        index: number of the training step, from 0.
        graphs: one graph per episode, in order.
        steps: the training examples of all graphs, in order, followed by those of a replay.
        trees: the number of each example's graph; one from a replay has its own number. Examples of a tree
            share most of what a model reads for them, so they stay together.
        figures: further figures to log.
    """

    index: int
    graphs: Sequence[Graph]
    steps: Sequence[Any]
    trees: Sequence[int]
    figures: Mapping[str, float] = field(default_factory=dict)


class Example(NamedTuple):
    """A training example and its weight in the update's mean; without a step it pads a batch."""

    step: Any
    loss_weight: float


class MicroBatch(NamedTuple):
    """What one process computes at once: its shard of a batch, or a part of that.

    Attributes:
        batch: the argument of ``Algorithm.step``.
        loss_weight: the weight of its loss in the mean over the whole update. The weights of all processes and all
            micro-batches of an update add up to 1. It is 0 on a process without an example, which still computes one,
            to take part in the collectives of the backward pass.
        is_last: whether the optimizer steps after it.
    """

    batch: Any
    loss_weight: float
    is_last: bool


class Plan(NamedTuple):
    """The order in which examples are computed.

    Attributes:
        micro_steps: the example indices of each micro-step, in which every process computes once: process by process,
            padded with ``PAD`` to the size of a batch.
        loss_weights: each example's weight in its update.
        is_last: for each micro-step, whether the optimizer steps after it.
    """

    micro_steps: list[list[int]]
    loss_weights: list[float]
    is_last: list[bool]

    def lengths(self) -> Iterator[int]:
        """The number of micro-steps of each update."""
        ends = [number for number, is_last in enumerate(self.is_last, start=1) if is_last]
        return (end - start for start, end in pairwise([0, *ends]))


def plan_micro_steps(
    weights: Sequence[float],
    order: Sequence[int],
    *,
    batch_size: int,
    accumulation: int,
    num_processes: int,
    shard: Callable[[Sequence[int], int], Sequence[Sequence[int]]] = contiguous_shards,
    split: Callable[[Sequence[int]], Sequence[Sequence[int]]] = lambda examples: [examples],
) -> Plan:
    """Plan which process computes which examples, and with which weight.

    A batch is sharded over the processes, and a process may split its shard. Five examples in the order 0 1 2 3 4, in
    batches of 4 on 2 processes, without accumulation; then the same with shards split into single examples::

        micro_steps    [[0, 1, 2, 3], [4, PAD, PAD, PAD]]     [[0, PAD, 2, PAD], [1, PAD, 3, PAD], [4, PAD, PAD, PAD]]
        loss_weights   [1/4, 1/4, 1/4, 1/4, 1]                the same
        is_last        [True, True]                           [False, True, True]

    Args:
        weights: the weight of each example in the mean that the algorithm's step takes.
        order: the examples' indices in the order of training.
        batch_size: the number of examples in a batch over all processes, a multiple of ``num_processes``.
        accumulation: the number of batches per update.
        num_processes: the number of processes that a batch is sharded over.
        shard: shards a batch; no shard may be larger than that of a full batch.
        split: splits a process's shard into parts that are computed one after another.
    """
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    per_rank = batch_size // num_processes
    plan = Plan([], [0.0] * len(weights), [])
    for start in range(0, len(batches), accumulation):
        update = batches[start : start + accumulation]
        total = sum(weights[index] for batch in update for index in batch)
        for index in (index for batch in update for index in batch):
            plan.loss_weights[index] = weights[index] / total if total else 0.0
        for batch in update:
            rank_shards = [split(examples) if examples else [] for examples in shard(batch, num_processes)]
            for number in range(max(map(len, rank_shards))):
                parts = [list(own[number]) if number < len(own) else [] for own in rank_shards]
                plan.micro_steps.append([index for part in parts for index in part + [PAD] * (per_rank - len(part))])
                plan.is_last.append(False)
        plan.is_last[-1] = True
    return plan


class ExperienceLoader:
    """Micro-batches of an experience, through one DataLoader that Accelerate prepares once and shards.

    It sets the number of micro-batches of each update in Accelerate, since that depends on the examples and their
    tokens. So ``accelerator.accumulate`` synchronises gradients, and lets the optimizer step, in the last micro-batch
    of each update.

    Args:
        accelerator: prepares the loader.
        algorithm: collates examples; its ``weight`` gives the weight of each in a mean.
        batch_size: the number of examples in a batch over all processes.
        accumulation: the number of batches per update.
        seed: determines the order of examples.
    """

    def __init__(self, accelerator: Accelerator, algorithm: Any, batch_size: int, accumulation: int, seed: int) -> None:
        self._examples = _Examples()
        self._batches = _Batches(batch_size, accelerator.num_processes, whole=accelerator.split_batches)
        self._accelerator = accelerator
        self._algorithm = algorithm
        self._accumulation = accumulation
        self._num_processes = accelerator.num_processes
        self._seed = seed
        loader = DataLoader(self._examples, batch_sampler=self._batches, collate_fn=self._collate)
        self.prepared = accelerator.prepare(loader)

    def micro_batches(self, experience: Experience, epoch: int) -> Iterator[MicroBatch]:
        """Yield this process's micro-batches of one pass over an experience, in an order set by seed, index and epoch.

        Trees are shuffled; the examples of each tree stay together and in order.
        """
        weigh = self._algorithm.weight if offers(self._algorithm, WeighsExamples) else _one
        generator = torch.Generator().manual_seed(derive_seed(self._seed, SHUFFLE_STREAM, experience.index, epoch))
        plan = plan_micro_steps(
            [weigh(step) for step in experience.steps],
            _shuffled(experience.trees, generator),
            batch_size=self._batches.batch_size_of_all,
            accumulation=self._accumulation,
            num_processes=self._num_processes,
            shard=lambda batch, num_shards: self._sharded(batch, num_shards, experience),
            split=lambda examples: self._longest_first(self._within_budget(examples, experience), experience),
        )
        self._batches.plan = plan.micro_steps
        self._examples.items = [
            Example(step, weight) for step, weight in zip(experience.steps, plan.loss_weights, strict=True)
        ]
        lengths, configured, is_first = plan.lengths(), self._accelerator.gradient_accumulation_steps, True
        try:
            for (batch, loss_weight), is_last in zip(self.prepared, plan.is_last, strict=True):
                if is_first:
                    self._accelerator.step = 0
                    self._accelerator.gradient_accumulation_steps = next(lengths)
                yield MicroBatch(batch, loss_weight, is_last)
                is_first = is_last
        finally:
            self._accelerator.gradient_accumulation_steps = configured

    def _sharded(self, batch: Sequence[int], num_shards: int, experience: Experience) -> list[list[int]]:
        """Shard a batch, balanced by the tokens that each process reads if the algorithm can count them."""
        if num_shards == 1 or self._num_tokens(batch, experience) is None:
            return contiguous_shards(batch, num_shards)
        room = self._batches.batch_size_of_all // num_shards
        return balanced_shards(
            batch, experience.trees, num_shards, room, lambda shard: self._num_tokens(shard, experience) or 0
        )

    def _within_budget(self, shard: Sequence[int], experience: Experience) -> list[list[int]]:
        """Split a shard into parts that each read no more tokens than the system's budget.

        A tree is cut only if it exceeds the budget by itself, an example never.
        """
        budget = getattr(getattr(self._algorithm, "system", None), "token_budget", None)
        if budget is None:
            return [list(shard)]

        def fits(part: Sequence[int]) -> bool:
            num_tokens = self._num_tokens(part, experience)
            return num_tokens is None or num_tokens <= budget

        parts: list[list[int]] = [[]]
        pending = [list(shard)]  # a stack: the whole shard, then its trees, then the examples of one tree
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
        """Sort the parts by the tokens that each reads, longest first, if the algorithm can count them.

        The memory that a part returns to the allocator then fits the next one, and processes compute parts of similar
        length at the same time.
        """
        if len(parts) == 1:
            return parts
        return sorted(parts, key=lambda part: self._num_tokens(part, experience) or 0, reverse=True)

    def _num_tokens(self, examples: Sequence[int], experience: Experience) -> int | None:
        """The number of tokens that a step on these examples reads; None if the algorithm can't count them."""
        if not offers(self._algorithm, CountsStepTokens):
            return None
        return self._algorithm.num_tokens([experience.steps[index] for index in examples])

    def _collate(self, items: Sequence[Example]) -> tuple[Any, float]:
        real = [item for item in items if item.step is not None] or [self._examples.items[0]._replace(loss_weight=0.0)]
        return self._algorithm.collate_fn([item.step for item in real]), sum(item.loss_weight for item in real)


def _shuffled(trees: Sequence[int], generator: torch.Generator) -> list[int]:
    """The indices of examples, tree by tree, with the trees in random order."""
    members: dict[int, list[int]] = {}
    for index, tree in enumerate(trees):
        members.setdefault(tree, []).append(index)
    groups = list(members.values())
    return [index for place in torch.randperm(len(groups), generator=generator).tolist() for index in groups[place]]


def _cut(run: Sequence[int], trees: Sequence[int]) -> list[list[int]]:
    """Cut a run of examples into its trees, or a single tree into its examples."""
    by_tree = [list(members) for _, members in groupby(run, key=trees.__getitem__)]
    return by_tree if len(by_tree) > 1 else [[index] for index in run]


class _Examples(Dataset[Example]):
    """The examples of the current experience."""

    def __init__(self) -> None:
        self.items: list[Example] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return Example(None, 0.0) if index == PAD else self.items[index]


class _Batches(Sampler[list[int]]):
    """The planned batches: whole if Accelerate splits each over the processes, otherwise one rank's part at a time."""

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
