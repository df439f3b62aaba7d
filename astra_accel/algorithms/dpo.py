"""Direct preference optimisation on trees: the best probe of a context against the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
import torch.nn.functional as F

from astra_accel.core.algorithm import Algorithm
from astra_accel.core.sampler import Graph, Node, Sampler, walk
from astra_accel.core.system import ActionT, StateT, System


@dataclass(frozen=True)
class DPOStep(Generic[StateT, ActionT]):
    """A context with two probes of which the first earned more.

    Attributes:
        prefix: the context.
        suffix_pos: the chosen probe.
        suffix_neg: the rejected probe.
        baseline_pos: log-prob of the chosen probe under the baseline, once it is known.
        baseline_neg: the same of the rejected probe.
    """

    prefix: StateT
    suffix_pos: ActionT
    suffix_neg: ActionT
    baseline_pos: float | None = None
    baseline_neg: float | None = None


@dataclass(frozen=True)
class DPOBatch(Generic[StateT, ActionT]):
    """The fields of the steps of a batch, one entry a step; the baseline's log-probs ``[batch]`` or None."""

    prefixes: Sequence[StateT]
    suffix_pos: Sequence[ActionT]
    suffix_neg: Sequence[ActionT]
    baseline_pos: torch.Tensor | None = None
    baseline_neg: torch.Tensor | None = None


def dpo_loss(
    tester_pos: torch.Tensor,
    tester_neg: torch.Tensor,
    baseline_pos: torch.Tensor,
    baseline_neg: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """The DPO loss of each pair, shape ``[batch]``.

    ``-log sigmoid(beta * ((log pi(w) - log ref(w)) - (log pi(l) - log ref(l))))``: Rafailov et al. 2023,
    https://arxiv.org/abs/2305.18290, equation 7, with w the chosen and l the rejected probe.

    Args:
        tester_pos, tester_neg: log-probs of the whole probes under the tester, ``[batch]``, in nats.
        baseline_pos, baseline_neg: the same under the baseline.
        beta: how strongly the tester is held to the baseline.
    """
    return -F.logsigmoid(beta * ((tester_pos - baseline_pos) - (tester_neg - baseline_neg)))


class DPO(Algorithm[StateT, ActionT, DPOStep, DPOBatch]):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290) of the tester.

    Every context of a tree gives one pair, its best probe against its worst; where their rewards tie, or the
    probes are the same, there is nothing to prefer and no pair.

    Args:
        system: scores probes under the tester and the baseline.
        beta: how strongly the tester is held to the baseline.
    """

    def __init__(self, system: System[StateT, ActionT], beta: float = 0.1) -> None:
        if not beta > 0:
            raise ValueError(f"beta is {beta}, expected more than 0")
        super().__init__(system)
        self.beta = beta

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[DPOStep[StateT, ActionT]]:
        """One pair for each context whose probes differ in reward."""
        siblings = [graph.children, *(node.children for _, node in walk(graph))]
        pairs = (_pair(nodes) for nodes in siblings if len(nodes) > 1)
        return [pair for pair in pairs if pair is not None]

    @staticmethod
    def collate_fn(batch: Sequence[DPOStep[StateT, ActionT]]) -> DPOBatch[StateT, ActionT]:
        """The fields of the steps as lists, the baseline's log-probs as float32 tensors."""
        return DPOBatch(
            prefixes=[step.prefix for step in batch],
            suffix_pos=[step.suffix_pos for step in batch],
            suffix_neg=[step.suffix_neg for step in batch],
            baseline_pos=_tensor([step.baseline_pos for step in batch]),
            baseline_neg=_tensor([step.baseline_neg for step in batch]),
        )

    def num_tokens(self, steps: Sequence[DPOStep[StateT, ActionT]]) -> int | None:
        """Distinct tokens of both probes of all pairs, where the system can count them."""
        count = getattr(self.system, "num_tokens", None)
        if count is None:
            return None
        batch = self.collate_fn(steps)
        return count([*batch.prefixes] * 2, [*batch.suffix_pos, *batch.suffix_neg])

    def precompute(self, steps: Sequence[DPOStep[StateT, ActionT]]) -> list[DPOStep[StateT, ActionT]]:
        """Add the baseline's log-probs, which stay the same over the epochs of an experience."""
        if not steps:
            return []
        batch = self.collate_fn(steps)
        chosen, rejected = self._baseline_logprobs(batch)
        return [
            replace(step, baseline_pos=pos, baseline_neg=neg)
            for step, pos, neg in zip(steps, chosen.tolist(), rejected.tolist(), strict=True)
        ]

    def step(self, batch: DPOBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The mean loss of a batch of pairs, and the usual figures of DPO (means over pairs, in nats)."""
        tester_pos, tester_neg = _halves(
            self.system.get_tester_logprobs([*batch.prefixes] * 2, [*batch.suffix_pos, *batch.suffix_neg])
        )
        if batch.baseline_pos is None or batch.baseline_neg is None:
            baseline_pos, baseline_neg = self._baseline_logprobs(batch)
        else:
            baseline_pos = batch.baseline_pos.to(tester_pos.device)
            baseline_neg = batch.baseline_neg.to(tester_pos.device)
        loss = dpo_loss(tester_pos, tester_neg, baseline_pos, baseline_neg, self.beta).mean()
        with torch.no_grad():
            reward_pos = self.beta * (tester_pos - baseline_pos)
            reward_neg = self.beta * (tester_neg - baseline_neg)
            logs = {
                "dpo/chosen_reward": reward_pos.mean(),
                "dpo/rejected_reward": reward_neg.mean(),
                "dpo/reward_margin": (reward_pos - reward_neg).mean(),
                "dpo/reward_accuracy": (reward_pos > reward_neg).float().mean(),
                "dpo/chosen_logprob": tester_pos.mean(),
                "dpo/rejected_logprob": tester_neg.mean(),
            }
        return loss, logs

    def check_sampler(self, sampler: Sampler[StateT, ActionT]) -> None:
        """Pairs need siblings."""
        width = getattr(sampler, "tree_width", None)
        if width is not None and width < 2:
            raise ValueError(f"tree_width is {width}, but DPO compares siblings; expected at least 2")

    @torch.no_grad()
    def _baseline_logprobs(self, batch: DPOBatch[StateT, ActionT]) -> tuple[torch.Tensor, torch.Tensor]:
        return _halves(self.system.get_baseline_logprobs([*batch.prefixes] * 2, [*batch.suffix_pos, *batch.suffix_neg]))


def _pair(siblings: Sequence[Node[StateT, ActionT]]) -> DPOStep[StateT, ActionT] | None:
    best = max(siblings, key=lambda node: node.reward)
    worst = min(siblings, key=lambda node: node.reward)
    if best.reward == worst.reward or best.probe == worst.probe:
        return None
    if best.context != worst.context:
        raise ValueError(f"siblings of a graph have different contexts: {best.context!r} and {worst.context!r}")
    return DPOStep(best.context, best.probe, worst.probe)


def _halves(logprobs_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = logprobs_BT.sum(-1).chunk(2)
    return chosen, rejected


def _tensor(values: Sequence[float | None]) -> torch.Tensor | None:
    return None if any(value is None for value in values) else torch.tensor(values, dtype=torch.float32)
