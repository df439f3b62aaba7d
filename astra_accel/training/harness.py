"""Collects experiences: rollouts spread over the processes, examples the same on all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from astra_accel.core.evaluator import eval_rollouts
from astra_accel.core.sampler import Graph
from astra_accel.core.seeding import derive_seed, seeded
from astra_accel.training.distributed import on_every_rank
from astra_accel.training.experience import Experience

EPISODE_STREAM = 0


class Harness:
    """The part of training below the loop: experiences in, losses out.

    With an accelerator it works together with the other processes; without, alone, as a loop of one's own on a
    single device needs it::

        harness = Harness(sampler, algorithm, num_episodes_per_experience=8, batch_size=4)
        for batch in harness.experience():
            loss, logs = harness.step(batch)

    Args:
        sampler: rolls episodes out.
        algorithm: makes examples and losses of them.
        num_episodes_per_experience: counted over all processes.
        batch_size: examples of a batch of :meth:`experience`.
        seed: episode ``i`` of experience ``n`` has the same seed on any number of processes.
        accelerator: the processes to share the work with.
    """

    def __init__(
        self,
        sampler: Any,
        algorithm: Any,
        num_episodes_per_experience: int = 32,
        *,
        batch_size: int = 1,
        seed: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.sampler = sampler
        self.algorithm = algorithm
        self.num_episodes_per_experience = num_episodes_per_experience
        self.batch_size = batch_size
        self.seed = seed
        self.accelerator = accelerator
        self._next_experience = 0

    def collect(self, index: int) -> Experience:
        """Experience number ``index``. All processes together; each gets the whole of it.

        An error on one process is an error on all of them.
        """
        seeds = [derive_seed(self.seed, EPISODE_STREAM, index, i) for i in range(self.num_episodes_per_experience)]
        graphs = self.spread(seeds, self._rollouts)
        by_graph = [list(self.algorithm.flatten(graph)) for graph in graphs]
        if getattr(self.algorithm, "precompute", None) is not None:
            by_graph = self.spread(by_graph, self._precompute)
        steps = [step for steps in by_graph for step in steps]
        trees = [number for number, steps in enumerate(by_graph) for _ in steps]
        prepare = getattr(self.algorithm, "prepare", None)
        if prepare is not None:
            steps = list(prepare(steps))
        # Whoever drops examples in `prepare` leaves nobody to say which tree the others are of.
        return Experience(index, graphs, steps, trees if len(trees) == len(steps) else range(len(steps)))

    def evaluate(self, seeds: Sequence[Any]) -> list[Graph]:
        """An evaluation rollout for each seed, spread over the processes; each gets all of them."""
        return self.spread(seeds, self._eval_rollouts)

    def experience(self, seed: int | None = None) -> Iterator[Any]:
        """Collect the next experience and yield its batches (``seed``: collect that number's instead)."""
        if seed is None:
            seed, self._next_experience = self._next_experience, self._next_experience + 1
        steps = self.collect(seed).steps
        for start in range(0, len(steps), self.batch_size):
            yield self.algorithm.collate_fn(steps[start : start + self.batch_size])

    def step(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """The loss of a batch and what to log."""
        return self.algorithm.step(batch)

    def spread(self, items: Sequence[Any], work: Any) -> list[Any]:
        """The results of ``work``, one an item, in order. All processes together; each gets all of them.

        Process ``i % num_processes`` works on item ``i``, with its other items in the same call.
        """
        if self.accelerator is None:
            return _one_each(items, work)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = on_every_rank(self.accelerator, lambda: _one_each(items[rank::world], work))
        return [parts[index % world][index // world] for index in range(len(items))]

    def _precompute(self, by_graph: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """All examples of this process in one call, given back by graph."""
        done = iter(_one_each([step for steps in by_graph for step in steps], self.algorithm.precompute))
        return [[next(done) for _ in steps] for steps in by_graph]

    @torch.no_grad()
    def _rollouts(self, seeds: Sequence[int]) -> Sequence[Graph]:
        many = getattr(self.sampler, "rollout_many", None)
        if many is not None:
            return many(seeds) if seeds else []
        graphs = []
        for seed in seeds:
            # A sampler that draws from the global generators is as reproducible as one that uses its seed.
            with seeded([seed]):
                graphs.append(self.sampler.rollout(seed))
        return graphs

    @torch.no_grad()
    def _eval_rollouts(self, seeds: Sequence[Any]) -> Sequence[Graph]:
        if not seeds:
            return []
        if getattr(self.sampler, "eval_rollout_many", None) is not None:
            return eval_rollouts(self.sampler, seeds)
        graphs = []
        for seed in seeds:
            with seeded([seed if isinstance(seed, int) and seed >= 0 else 0]):
                graphs.append(self.sampler.eval_rollout(seed))
        return graphs


def _one_each(items: Sequence[Any], work: Any) -> list[Any]:
    results = list(work(items))
    if len(results) != len(items):
        raise ValueError(f"{work.__qualname__} returned {len(results)} results for {len(items)} items")
    return results
