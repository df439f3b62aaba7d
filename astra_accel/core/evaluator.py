"""An evaluator turns evaluation rollouts into metrics."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic

from astra_accel.core.optional import EvaluatesMany, offers
from astra_accel.core.sampler import Graph, Sampler
from astra_accel.core.system import ActionT, StateT


class Evaluator(ABC, Generic[StateT, ActionT]):
    """Rolls a sampler out on evaluation seeds and computes metrics of the graphs.

    Args:
        sampler: makes the graphs with ``eval_rollout``, or all at once with ``eval_rollout_many`` if it has that.
        seeds: the argument of ``eval_rollout`` for each episode: ints, or prompts if the sampler takes them.
            None: ``evaluate`` counts from 0.
    """

    def __init__(self, sampler: Sampler[StateT, ActionT], seeds: Sequence[Any] | None = None) -> None:
        self.sampler = sampler
        self.seeds = None if seeds is None else list(seeds)

    @abstractmethod
    def compute_metrics(self, graph: Graph[StateT, ActionT]) -> Mapping[str, Any]:
        """The metrics of one episode."""

    def compute_metrics_many(self, graphs: Sequence[Graph[StateT, ActionT]]) -> Sequence[Mapping[str, Any]]:
        """The metrics of each episode. The trainer calls this on each process for its share of the evaluation."""
        return [self.compute_metrics(graph) for graph in graphs]

    @abstractmethod
    def aggregate_metrics(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Aggregate the metrics of episodes into those of the whole evaluation."""

    def select_seeds(self, num_episodes: int | None = None) -> list[Any]:
        """The seeds of an evaluation of ``num_episodes`` (None: all given seeds)."""
        if self.seeds is None:
            if num_episodes is None:
                raise ValueError("num_episodes is needed where the evaluator was given no seeds")
            return list(range(num_episodes))
        if num_episodes is not None and num_episodes > len(self.seeds):
            raise ValueError(f"num_episodes is {num_episodes}, but there are {len(self.seeds)} seeds")
        return self.seeds[:num_episodes]

    def evaluate(self, num_episodes: int | None = None) -> dict[str, float]:
        """Roll out on this process alone and return the aggregated metrics.

        ``AccelTrainer.evaluate`` spreads the same work over all processes.
        """
        graphs = eval_rollouts(self.sampler, self.select_seeds(num_episodes))
        return self.aggregate_metrics(self.compute_metrics_many(graphs))

    @staticmethod
    def write_json(metrics: Mapping[str, Any], path: str | Path) -> None:
        """Write metrics to a JSON file."""
        Path(path).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def eval_rollouts(
    sampler: Sampler[StateT, ActionT],
    seeds: Sequence[Any],
    within: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
) -> Sequence[Graph[StateT, ActionT]]:
    """An evaluation graph for each seed, all at once if the sampler can.

    Args:
        sampler: makes the graphs.
        seeds: the seed of each graph.
        within: if the sampler makes one graph at a time, returns the context manager to make it in, given its seed.
    """
    if offers(sampler, EvaluatesMany):
        return sampler.eval_rollout_many(seeds)
    graphs = []
    for seed in seeds:
        with within(seed):
            graphs.append(sampler.eval_rollout(seed))
    return graphs
