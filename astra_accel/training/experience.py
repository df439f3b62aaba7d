"""An experience, and the loader that hands every process its share of each batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from astra_accel.core.sampler import Graph
from astra_accel.core.seeding import derive_seed

PAD = -1
SHUFFLE_STREAM = 1


@dataclass(frozen=True)
class Experience:
    """What was collected with the weights of one training step; the same on every process.

    Attributes:
        index: number of the training step, from 0.
        graphs: one an episode, in order.
        steps: the training examples of all graphs, in order.
    """

    index: int
    graphs: Sequence[Graph]
    steps: Sequence[Any]


class Example(NamedTuple):
    """A training example and its share of the update's mean; without a step it is padding of a batch."""

    step: Any
    share: float


class Shard(NamedTuple):
    """One process's part of a batch.

    Attributes:
        batch: what ``Algorithm.step`` takes.
        share: the part's share of the mean over the whole update; the shares of all processes and of all
            accumulated batches add up to 1. 0 on a process that has no example, which steps on one all the same
            so that it takes part in the collectives of the backward pass.
    """

    batch: Any
    share: float


def plan_batches(
    weights: Sequence[float], order: Sequence[int], batch_size: int, accumulation: int, num_processes: int
) -> tuple[list[list[int]], list[float]]:
    """Batches of exactly ``batch_size`` indices, and each example's share of its update.

    Batch entries are laid out rank by rank; ``PAD`` fills what examples leave. Five examples in the order
    0 1 2 3 4, batches of 4 on 2 processes, no accumulation::

        batches   [[0, 2, 1, 3], [4, PAD, PAD, PAD]]     rank 0 has the first half of each
        shares    [1/4, 1/4, 1/4, 1/4, 1]

    Args:
        weights: of each example in the mean that the algorithm's step takes.
        order: the examples' indices in the order of training.
        batch_size: examples of a batch over all processes, a multiple of ``num_processes``.
        accumulation: batches an update.
        num_processes: examples of a batch are dealt out to them in turn.
    """
    chunks = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    shares = [0.0] * len(weights)
    for start in range(0, len(chunks), accumulation):
        update = [index for chunk in chunks[start : start + accumulation] for index in chunk]
        total = sum(weights[index] for index in update)
        for index in update:
            shares[index] = weights[index] / total if total else 0.0
    per_rank = batch_size // num_processes
    batches = []
    for chunk in chunks:
        hands = [chunk[rank::num_processes] for rank in range(num_processes)]
        batches.append([index for hand in hands for index in hand + [PAD] * (per_rank - len(hand))])
    return batches, shares


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
        """This process's shards of one pass over an experience, in an order that seed, index and epoch give."""
        weigh = getattr(self._algorithm, "weight", _one)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, SHUFFLE_STREAM, experience.index, epoch))
        order = torch.randperm(len(experience.steps), generator=generator).tolist()
        batches, shares = plan_batches(
            [weigh(step) for step in experience.steps],
            order,
            self._batches.batch_size_of_all,
            self._accumulation,
            self._num_processes,
        )
        self._batches.plan = batches
        self._examples.items = [Example(step, share) for step, share in zip(experience.steps, shares, strict=True)]
        yield from self.prepared

    def _collate(self, items: Sequence[Example]) -> Shard:
        real = [item for item in items if item.step is not None] or [self._examples.items[0]._replace(share=0.0)]
        return Shard(self._algorithm.collate_fn([item.step for item in real]), sum(item.share for item in real))


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
