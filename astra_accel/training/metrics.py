"""Figures of an update and of an experience."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, pstdev
from typing import Any

import torch
from accelerate import Accelerator

from astra_accel.core.outcomes import ANSWERED, shares
from astra_accel.core.sampler import term_values, walk
from astra_accel.distributed.collectives import gather_results
from astra_accel.experience.loader import Experience


class UpdateTally:
    """Sums what the steps of one update return, weighted by the loss weights of their micro-batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, loss: torch.Tensor, logs: Mapping[str, Any], loss_weight: float) -> None:
        """Add one step's means; with ``loss_weight`` 0, only their names are recorded."""
        for name, value in {"loss": loss, **logs}.items():
            number = float(value.detach() if isinstance(value, torch.Tensor) else value)
            # 0 × nan is nan: a placeholder batch must not touch the sum.
            self._sums[name] = self._sums.get(name, 0.0) + (number * loss_weight if loss_weight else 0.0)
            self._weights[name] = self._weights.get(name, 0.0) + loss_weight

    def reduce(self, accelerator: Accelerator, check: Callable[[], None]) -> dict[str, float]:
        """The means over all processes, the same on each, in one exchange, even where their names differ.

        An error that ``check`` raises on any process reaches all of them in the same exchange.
        """

        def part() -> tuple[dict[str, float], dict[str, float]]:
            check()
            return self._sums, self._weights

        parts = gather_results(accelerator, part)
        means = {}
        for name in dict.fromkeys(name for sums, _ in parts for name in sums):
            weight = math.fsum(weights.get(name, 0.0) for _, weights in parts)
            means[name] = math.fsum(sums.get(name, 0.0) for sums, _ in parts) / weight if weight else math.nan
        return means


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last call, as ``seconds/<phase>``."""
        taken = {f"seconds/{name}": round(value, 4) for name, value in self.seconds.items()}
        self.seconds = {}
        return taken


def speed_figures(num_tokens: int, seconds: Mapping[str, float], waited: Sequence[float]) -> dict[str, float]:
    """The speed of a training step's rollouts and updates, and the fraction of it that processes waited for others.

    Args:
        num_tokens: the tokens sampled by all processes.
        seconds: the seconds spent in each phase.
        waited: the seconds that each process waited.
    """
    busy = seconds["rollout"] + seconds.get("update", 0.0)
    return {"speed/tokens_per_second": num_tokens / busy, "speed/wait_share": fmean(waited) / busy}


def experience_metrics(experience: Experience) -> dict[str, float]:
    """The figures of an experience.

    Rewards and their terms over the nodes that have them, the number of examples, tokens where nodes record them, and
    any further figures that the experience has.
    """
    nodes = [node for graph in experience.graphs for _, node in walk(graph)]
    rewards = [float(node.reward) for node in nodes if node.reward is not None]
    metrics: dict[str, float] = {"examples": len(experience.steps)}
    if rewards:
        metrics |= {"reward/mean": fmean(rewards), "reward/std": pstdev(rewards), "reward/max": max(rewards)}
    metrics |= {f"reward/{name}": fmean(values) for name, values in term_values(nodes).items()}
    infos = [getattr(node, "info", {}) for node in nodes]
    tokens = [info.get(name) or 0 for info in infos for name in ("probe_tokens", "response_tokens")]
    metrics["tokens"] = sum(tokens)
    metrics["missing_rewards"] = len(nodes) - len(rewards)
    metrics["empty_probes"] = sum(not str(node.probe) for node in nodes)
    metrics["empty_responses"] = sum(not str(node.response) for node in nodes)
    metrics |= shares([str(info.get("outcome", ANSWERED)) for info in infos])
    return {**metrics, **experience.figures}


def mean_reward(experience: Experience) -> float:
    """The mean reward of an experience's probes; nan if there are none, since 0 could count as progress."""
    return experience_metrics(experience).get("reward/mean", math.nan)
