"""Maximum likelihood on successful probes: expert iteration, and return-weighted regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Generic

import torch

from astra_accel.algorithms.credit import Credit
from astra_accel.algorithms.options import check_positive, token_mask
from astra_accel.algorithms.trajectory_balance import TBStep
from astra_accel.core.algorithm import Algorithm, ReplayEntry
from astra_accel.core.optional import CountsTokens, HasBaseline, offers
from astra_accel.core.sampler import Graph, response_score
from astra_accel.core.system import ActionT, StateT, System


@dataclass(frozen=True)
class MLEStep(Generic[StateT, ActionT]):
    """A probe to make likelier.

    Attributes:
        context: the state in which it was written.
        probe: what the tester wrote.
        earned: its return.
        num_tokens: its number of tokens, once known.
        fluency: its mean log-prob per token under the baseline; None without a baseline.
        score: how unsafe the response to it was judged; None if unknown.
        factor: the factor on the loss of each of its tokens.
    """

    context: StateT
    probe: ActionT
    earned: float
    num_tokens: int | None = None
    fluency: float | None = None
    score: float | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class MLEBatch(Generic[StateT, ActionT]):
    """The fields of the steps of a batch, one entry per step; the tensors are ``[batch]``."""

    contexts: Sequence[StateT]
    probes: Sequence[ActionT]
    earned: torch.Tensor
    factor: torch.Tensor


class MLE(Algorithm[StateT, ActionT, MLEStep, MLEBatch]):
    """Maximum likelihood on the probes that earned most.

    The loss of a batch is the negative log-likelihood of its probes, a mean over tokens: the same as transformers'
    causal language modelling loss with labels only on the probes. With ``tau`` the tokens of a probe count in
    proportion to ``exp(return / tau)``, with a mean of 1 over the probes of an experience that are trained on: an
    update on poor probes only is a small one.

    - ``best`` below 1 is expert iteration (Anthony et al. 2017, https://arxiv.org/abs/1705.08439), for language models
      also known as RAFT (Dong et al. 2023, https://arxiv.org/abs/2304.06767): sample, keep the best, imitate them.
    - ``tau`` is reward-weighted regression (Peters and Schaal 2007, https://doi.org/10.1145/1273496.1273590).

    Nothing holds the tester to its baseline except that it learns from its own samples. With ``training.replay``
    earlier successes are imitated again, and ``max_overlap`` there keeps them from being one probe over and over.

    Args:
        system: scores probes under the tester; under the baseline too, if it has one, for the replay's fluency.
        best: the fraction of an experience's probes to train on, those with the highest returns; the earlier one wins
            a tie.
        min_return: leaves out probes that did not earn more than this; None leaves out none.
        tau: the temperature of the weights ``exp(return / tau)``; None weights all probes alike.
        credit, discount: what counts towards a probe's return: its own reward, or later ones too. See
            :class:`~astra_accel.algorithms.credit.Credit`.
    """

    off_policy = True  # a likelihood does not depend on the policy that wrote the text
    step_types = (MLEStep,)
    adopted_types = (TBStep,)

    def __init__(
        self,
        system: System[StateT, ActionT],
        best: float = 0.25,
        *,
        min_return: float | None = None,
        tau: float | None = None,
        credit: str = "immediate",
        discount: float = 1.0,
    ) -> None:
        if not 0 < best <= 1:
            raise ValueError(f"best is {best}, expected more than 0 and at most 1")
        if min_return is not None and not math.isfinite(min_return):
            raise ValueError(f"min_return is {min_return}, expected a finite number, or None to take any")
        if tau is not None:
            check_positive("tau", tau)
        super().__init__(system)
        self.best = best
        self.min_return = min_return
        self.tau = tau
        self.credit = Credit(credit, discount)

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[MLEStep[StateT, ActionT]]:
        """Every probe with its return, parents before children."""
        return [
            MLEStep(node.context, node.probe, earned, score=response_score(node))
            for siblings in self.credit.siblings(graph)
            for node, earned in siblings
        ]

    def adopt(self, step: MLEStep[StateT, ActionT] | TBStep[StateT, ActionT]) -> list[MLEStep[StateT, ActionT]]:
        """Take MLE's own examples, and each probe of a trajectory balance group, if it earned more than ``min_return``.

        This allows maximum likelihood as a second phase after trajectory balance, as in Lee et al. 2024,
        https://arxiv.org/abs/2405.18540. ``tau`` sets how strongly returns weight the probes.
        """
        adopted = [step] if isinstance(step, MLEStep) else _ungrouped(step)
        return [one for one in adopted if self._is_enough(one.earned)]

    def choose(self, steps: Sequence[MLEStep[StateT, ActionT]]) -> list[bool]:
        """Choose those that are among the best of all probes and earned more than ``min_return``."""
        ranked = sorted(range(len(steps)), key=lambda index: -steps[index].earned)
        best = set(ranked[: math.ceil(self.best * len(steps))])
        return [index in best and self._is_enough(step.earned) for index, step in enumerate(steps)]

    @torch.no_grad()
    def precompute(self, steps: Sequence[MLEStep[StateT, ActionT]]) -> list[MLEStep[StateT, ActionT]]:
        """Add each probe's number of tokens and its fluency under the baseline."""
        if not steps:
            return []
        contexts, probes = [step.context for step in steps], [step.probe for step in steps]
        has_baseline = offers(self.system, HasBaseline)
        logprobs = self.system.get_baseline_logprobs if has_baseline else self.system.get_tester_logprobs
        logprobs_BT = logprobs(contexts, probes)
        num_tokens_B = token_mask(self.system, probes, logprobs_BT).sum(-1)
        means = (logprobs_BT.sum(-1) / num_tokens_B.clamp(min=1)).tolist()
        fluencies = means if has_baseline else [None] * len(steps)
        return [
            replace(step, num_tokens=num_tokens, fluency=fluency)
            for step, num_tokens, fluency in zip(steps, num_tokens_B.tolist(), fluencies, strict=True)
        ]

    def prepare(self, steps: Sequence[MLEStep[StateT, ActionT]]) -> list[MLEStep[StateT, ActionT]]:
        """Add the factor of each probe."""
        if self.tau is None or not steps:
            return list(steps)
        most = max(step.earned for step in steps)
        sizes = [math.exp((step.earned - most) / self.tau) for step in steps]
        return [replace(step, factor=size / fmean(sizes)) for step, size in zip(steps, sizes, strict=True)]

    @staticmethod
    def collate_fn(batch: Sequence[MLEStep[StateT, ActionT]]) -> MLEBatch[StateT, ActionT]:
        """The fields of the steps."""
        return MLEBatch(
            contexts=[step.context for step in batch],
            probes=[step.probe for step in batch],
            earned=torch.tensor([step.earned for step in batch]),
            factor=torch.tensor([step.factor for step in batch]),
        )

    def weight(self, step: MLEStep[StateT, ActionT]) -> float:
        """The number of tokens of the probe. ``factor`` is not part of it: it scales the loss, not the denominator.

        Raises:
            ValueError: ``precompute`` has not counted the tokens yet.
        """
        if step.num_tokens is None:
            raise ValueError("an example has no number of tokens; call precompute on it first")
        return float(step.num_tokens)

    def num_tokens(self, steps: Sequence[MLEStep[StateT, ActionT]]) -> int | None:
        """The number of distinct tokens of the probes in their contexts, if the system can count them."""
        if not offers(self.system, CountsTokens):
            return None
        return self.system.num_tokens([step.context for step in steps], [step.probe for step in steps])

    def replay_entry(self, step: MLEStep[StateT, ActionT]) -> ReplayEntry:
        """Rank by the return of the probe."""
        return ReplayEntry(step.earned, (step.probe,), step.fluency, step.score)

    def step(self, batch: MLEBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss of a batch: the mean over tokens of their negative log-probs, in nats, times the probe's factor."""
        logprobs_BT = self.system.get_tester_logprobs(batch.contexts, batch.probes)
        num_tokens_B = token_mask(self.system, batch.probes, logprobs_BT).sum(-1)
        total = num_tokens_B.sum().clamp(min=1)
        loss = -(batch.factor.to(logprobs_BT) * logprobs_BT.sum(-1)).sum() / total
        with torch.no_grad():
            logs = {
                "mle/return": (batch.earned.to(logprobs_BT) * num_tokens_B).sum() / total,
                "mle/logprob": logprobs_BT.sum() / total,
            }
        return loss, logs

    def _is_enough(self, earned: float) -> bool:
        return self.min_return is None or earned > self.min_return


def _ungrouped(group: TBStep[StateT, ActionT]) -> list[MLEStep[StateT, ActionT]]:
    return [
        MLEStep(group.context, probe, earned, score=score)
        for probe, earned, score in zip(group.probes, group.returns, group.scores, strict=True)
    ]
