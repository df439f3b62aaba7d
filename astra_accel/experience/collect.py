"""Collects experiences: rollouts are spread over the processes, examples are the same on all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from astra_accel.core.evaluator import eval_rollouts
from astra_accel.core.optional import (
    ChoosesExamples,
    CountsExperiences,
    KeepsExamples,
    ObservesExperiences,
    Precomputes,
    Prepares,
    RollsOutMany,
    offers,
)
from astra_accel.core.sampler import Graph, rewarded_trees
from astra_accel.core.seeding import derive_seed, seeded
from astra_accel.distributed.collectives import gather_results
from astra_accel.errors import NonFiniteError
from astra_accel.experience.curriculum import Curriculum
from astra_accel.experience.loader import Experience
from astra_accel.experience.replay import Replay

EPISODE_STREAM = 0


@contextmanager
def naming_step(when: str) -> Iterator[None]:
    """Add to the error the point of the run at which a model computed nan or inf.

    Raises:
        NonFiniteError: replaces the ``FloatingPointError`` that systems raise in that case.
    """
    try:
        yield
    except FloatingPointError as error:
        raise NonFiniteError(f"{when}: {error}") from error


class Harness:
    """The part of training below the loop: experiences in, losses out.

    With an accelerator it works together with the other processes. Without one it runs alone, for a custom loop on
    a single device::

        harness = Harness(sampler, algorithm, num_episodes_per_experience=8, batch_size=4)
        for batch in harness.experience():
            loss, logs = harness.step(batch)

    Args:
        sampler: rolls out episodes.
        algorithm: turns episodes into examples and losses.
        num_episodes_per_experience: the number of episodes, over all processes.
        batch_size: the number of examples in a batch of :meth:`experience`.
        seed: episode ``i`` of experience ``n`` has the same seed on any number of processes.
        accelerator: the processes to share the work with.
        replay: examples of earlier experiences, some of which are trained on again; None trains on new ones only.
        curriculum: prompts of earlier experiences, some of which are rolled out again; None draws all at random.
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
        replay: Replay | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        self.sampler = sampler
        self.algorithm = algorithm
        self.num_episodes_per_experience = num_episodes_per_experience
        self.batch_size = batch_size
        self.seed = seed
        self.accelerator = accelerator
        self.replay = replay
        self.curriculum = curriculum
        self._next_experience = 0

    def collect(self, index: int) -> Experience:
        """Collect experience number ``index``. A collective call; every process gets all of it.

        An error on one process is raised on all of them.

        Raises:
            NonFiniteError: a model computed nan or inf.
        """

        def rollouts(episodes: Sequence[tuple[int, int]]) -> Sequence[Graph]:
            with naming_step(f"training step {index + 1}"):
                return self._rollouts(episodes)

        if offers(self.sampler, CountsExperiences):
            self.sampler.begin_experience(index)
        episodes = self._episodes(index)
        graphs = self.spread(episodes, rollouts)
        self._observe(graphs, index)
        figures = {} if self.curriculum is None else self.curriculum.observe([seed for _, seed in episodes], graphs)
        by_graph = [
            [step for tree in rewarded_trees(graph) for step in self.algorithm.flatten(tree)] for graph in graphs
        ]
        by_graph = self._chosen(by_graph)
        if offers(self.algorithm, Precomputes):
            by_graph = self.spread(by_graph, self._precompute)
        if offers(self.algorithm, KeepsExamples):
            by_graph = [[step for step in steps if self.algorithm.keep(step)] for steps in by_graph]
        steps = [step for steps in by_graph for step in steps]
        trees = [number for number, steps in enumerate(by_graph) for _ in steps]
        if offers(self.algorithm, Prepares):
            steps = list(self.algorithm.prepare(steps))
        # If `prepare` drops examples, it is unknown which trees the others belong to.
        trees = trees if len(trees) == len(steps) else list(range(len(steps)))
        experience = Experience(index, graphs, steps, trees, figures)
        return experience if self.replay is None else _with_replayed(experience, self.replay)

    def begin_replay(self, text: str) -> int:
        """Fill the replay with examples of another run; return how many it keeps. A collective call.

        Raises:
            ValueError: the text is not a replay, or it is from another algorithm.
        """
        if self.replay is None:
            raise ValueError("there is no replay to fill; expected a Harness with one")
        steps = self.replay.adopted(text)
        if offers(self.algorithm, Precomputes):
            steps = [step for (step,) in self.spread([[step] for step in steps], self._precompute)]
        if offers(self.algorithm, Prepares):
            steps = list(self.algorithm.prepare(steps))
        self.replay.begin_with(steps)
        return len(self.replay)

    def evaluate(self, seeds: Sequence[Any]) -> list[Graph]:
        """Roll out an evaluation episode for each seed, spread over the processes; each process gets all of them."""
        return self.spread(seeds, self._eval_rollouts)

    def experience(self, seed: int | None = None) -> Iterator[Any]:
        """Collect the next experience, or the one with number ``seed``, and yield its batches."""
        if seed is None:
            seed, self._next_experience = self._next_experience, self._next_experience + 1
        steps = self.collect(seed).steps
        for start in range(0, len(steps), self.batch_size):
            yield self.algorithm.collate_fn(steps[start : start + self.batch_size])

    def step(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """The loss of a batch and the metrics to log."""
        return self.algorithm.step(batch)

    def _observe(self, graphs: Sequence[Graph], index: int) -> None:
        """Pass an experience to the system on each process; if one fails, all do."""
        system = getattr(self.sampler, "system", None)
        if not offers(system, ObservesExperiences):
            return
        if self.accelerator is None:
            system.observe(graphs, index)
        else:
            gather_results(self.accelerator, lambda: system.observe(graphs, index))

    def spread(self, items: Sequence[Any], work: Any) -> list[Any]:
        """Return the results of ``work``, one per item, in order. A collective call; every process gets all results.

        Process ``i % num_processes`` works on item ``i``, in one call with its other items.
        """
        if self.accelerator is None:
            return _one_each(items, work)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts = gather_results(self.accelerator, lambda: _one_each(items[rank::world], work))
        return [parts[index % world][index // world] for index in range(len(items))]

    def _chosen(self, by_graph: list[list[Any]]) -> list[list[Any]]:
        """The examples to train on, by graph. Needs no communication: all processes choose the same."""
        if not offers(self.algorithm, ChoosesExamples):
            return by_graph
        answers = iter(_one_each([step for steps in by_graph for step in steps], self.algorithm.choose))
        return [[step for step in steps if next(answers)] for steps in by_graph]

    def _precompute(self, by_graph: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Precompute all examples of this process in one call; return them by graph.

        Runs in the precision of updates, so that results can be compared with those of updates.
        """
        with nullcontext() if self.accelerator is None else self.accelerator.autocast():
            done = iter(_one_each([step for steps in by_graph for step in steps], self.algorithm.precompute))
        return [[next(done) for _ in steps] for steps in by_graph]

    def _episodes(self, index: int) -> list[tuple[int, int]]:
        """The seed of each episode of an experience, and its prompt's.

        A prompt's is that of the first episode with the prompt, now or, if it is repeated, when it was new.
        """
        count, per_prompt = self.num_episodes_per_experience, self._episodes_per_prompt
        if count % per_prompt:
            raise ValueError(
                f"num_episodes_per_experience is {count}, but the sampler's episodes_per_prompt is {per_prompt}; "
                f"expected a multiple of it"
            )
        seeds = [derive_seed(self.seed, EPISODE_STREAM, index, number) for number in range(count)]
        prompt_seeds = seeds[::per_prompt]
        if self.curriculum is not None:
            prompt_seeds = self.curriculum.with_repeated(index, prompt_seeds)
        return [(seed, prompt_seeds[number // per_prompt]) for number, seed in enumerate(seeds)]

    @property
    def _episodes_per_prompt(self) -> int:
        return getattr(self.sampler, "episodes_per_prompt", 1)

    @torch.no_grad()
    def _rollouts(self, episodes: Sequence[tuple[int, int]]) -> Sequence[Graph]:
        if not episodes:
            return []
        seeds, prompt_seeds = map(list, zip(*episodes, strict=True))
        if offers(self.sampler, RollsOutMany):
            many = self.sampler.rollout_many
            own = self._episodes_per_prompt == 1 and self.curriculum is None
            return many(seeds) if own else many(seeds, prompt_seeds)
        graphs = []
        for seed in seeds:
            # So that a sampler that draws from the global generators is reproducible too.
            with seeded([seed]):
                graphs.append(self.sampler.rollout(seed))
        return graphs

    @torch.no_grad()
    @naming_step("evaluation")
    def _eval_rollouts(self, seeds: Sequence[Any]) -> Sequence[Graph]:
        if not seeds:
            return []
        return eval_rollouts(
            self.sampler, seeds, within=lambda seed: seeded([seed if isinstance(seed, int) and seed >= 0 else 0])
        )


def _with_replayed(experience: Experience, replay: Replay) -> Experience:
    """Add examples of earlier experiences to an experience; its own go into the replay."""
    drawn, figures = replay.exchange(experience.index, experience.steps)
    first = max(experience.trees, default=-1) + 1
    return replace(
        experience,
        steps=[*experience.steps, *drawn],
        trees=[*experience.trees, *range(first, first + len(drawn))],
        figures={**experience.figures, **figures},
    )


def _one_each(items: Sequence[Any], work: Any) -> list[Any]:
    results = list(work(items))
    if len(results) != len(items):
        raise ValueError(f"{work.__qualname__} returned {len(results)} results for {len(items)} items")
    return results
