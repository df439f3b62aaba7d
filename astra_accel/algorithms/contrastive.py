"""Contrastive trajectory balance on pairs of siblings, in which only fluent probes keep their return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import torch

from astra_accel.algorithms.dpo import DPO, DPOStep
from astra_accel.algorithms.options import token_mask
from astra_accel.core.sampler import Graph
from astra_accel.core.system import ActionT, StateT, System


def min_k_mean(logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, min_k: float) -> torch.Tensor:
    """The mean log-prob of the least likely tokens of each row, ``[batch]``; 0 for a row without tokens.

    Min-K% Prob, Shi et al. 2023, https://arxiv.org/abs/2310.16789, equation 1.

    Args:
        logprobs_BT: the log-prob of each token, in nats.
        mask_BT: which positions hold a token.
        min_k: the fraction of a row's tokens to average, rounded up to at least one token.
    """
    # Treat a product that is whole except for rounding (0.7 * 10 is 7.000000000000001) as whole.
    num_least_B = (min_k * mask_BT.sum(-1).double() - 1e-9).ceil()
    lowest_first_BT = logprobs_BT.masked_fill(~mask_BT, torch.inf).sort(-1).values
    places = torch.arange(logprobs_BT.shape[-1], device=logprobs_BT.device)
    least_BT = lowest_first_BT.masked_fill(places >= num_least_B[:, None], 0.0)
    return least_BT.sum(-1) / num_least_B.clamp(min=1).to(logprobs_BT.dtype)


class CTB(DPO[StateT, ActionT]):
    """Contrastive trajectory balance (Stable-GFlowNet, https://arxiv.org/abs/2605.00553) on pairs of siblings.

    The tester learns to sample probes in proportion to ``baseline * exp(return / beta)``, so it keeps all probes that
    work, not just the best. This is :class:`DPO` with ``loss="ctb"``: trajectory balance between two probes of one
    context, in which the partition function cancels.

    From the paper: the squared difference of a pair (equation 3), over all pairs. Pairs whose log-rewards are within
    sigma of each other are left out, as noise decides which is better (equation 7; sigma is 0.1 to 0.5 there, and
    ``margin / beta`` here). A probe gets no reward if its k least likely tokens have a mean log-prob under the
    baseline below a floor (equations 8 and 9; k is 7 and the floor about -10 there).

    Ours: pairs are siblings, not any two probes of a batch. The baseline is part of the target distribution; the paper
    leaves it out. k is a fraction of a probe's tokens, as in Min-K% Prob, so that it means the same at any length. A
    probe below the floor gets the return of its worst sibling; the paper gives it a log-reward of -300, which would
    dominate a mean of squares.

    Args:
        system: scores probes under the tester and the baseline.
        beta: divides returns: the smaller, the further from the baseline and the closer to the best probe.
        pairs: which siblings are compared, see :class:`DPO`; they are chosen before the floor applies.
        margin: the return gap that a pair must exceed; beta times the paper's sigma.
        min_k_floor: the lowest mean log-prob of a probe's least likely tokens under the baseline, in nats per token,
            at which it keeps its return; None keeps every return.
        min_k: the fraction of a probe's tokens that count as its least likely ones, rounded up.
        credit, discount: see :class:`DPO`.
    """

    def __init__(
        self,
        system: System[StateT, ActionT],
        beta: float = 0.1,
        *,
        pairs: str = "all",
        margin: float = 0.0,
        min_k_floor: float | None = None,
        min_k: float = 0.2,
        credit: str = "immediate",
        discount: float = 1.0,
    ) -> None:
        super().__init__(system, beta, loss="ctb", pairs=pairs, margin=margin, credit=credit, discount=discount)
        if min_k_floor is not None and not -inf < min_k_floor < 0:
            raise ValueError(f"min_k_floor is {min_k_floor}, expected nats a token below 0, or None for no floor")
        if not 0 < min_k <= 1:
            raise ValueError(f"min_k is {min_k}, expected more than 0 and at most 1")
        self.min_k_floor = min_k_floor
        self.min_k = min_k

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[DPOStep[StateT, ActionT]]:
        """The pairs of each context, parents before children.

        With a floor, all pairs that may end up further apart than the margin; which do is only known once the
        baseline's log-probs are.
        """
        if self.min_k_floor is None:
            return super().flatten(graph)
        steps = [step for siblings in self.credit.siblings(graph) for step in self.compare(siblings)]
        return [step for step in steps if self.keep(_keep_fluent(step, True, False))]

    @torch.no_grad()
    def precompute(self, steps: Sequence[DPOStep[StateT, ActionT]]) -> list[DPOStep[StateT, ActionT]]:
        """Add the baseline's log-probs, and replace the returns of probes below the floor.

        If the rejected probe then has the higher return, the two are swapped.
        """
        if self.min_k_floor is None or not steps:
            return super().precompute(steps)
        batch = self.collate_fn(steps)
        logprobs_BT = self._baseline_logprobs(batch)
        mask_BT = token_mask(self.system, [*batch.suffix_pos, *batch.suffix_neg], logprobs_BT)
        # nan does not count as below the floor: the pair stays, and the trainer stops at its loss.
        fluent_pos, fluent_neg = (~(min_k_mean(logprobs_BT, mask_BT, self.min_k) < self.min_k_floor)).chunk(2)
        known = zip(
            self._with_baseline(steps, batch, logprobs_BT), fluent_pos.tolist(), fluent_neg.tolist(), strict=True
        )
        return [_keep_fluent(step, fluent_pos, fluent_neg) for step, fluent_pos, fluent_neg in known]


def _keep_fluent(step: DPOStep[StateT, ActionT], fluent_pos: bool, fluent_neg: bool) -> DPOStep[StateT, ActionT]:
    """Give probes that are not fluent the worst return, and put the better probe first."""
    pos = step.return_pos if fluent_pos else step.worst_return
    neg = step.return_neg if fluent_neg else step.worst_return
    kept = replace(step, return_pos=pos, return_neg=neg)
    if kept.gap is None or kept.gap >= 0:
        return kept
    return replace(
        kept,
        suffix_pos=kept.suffix_neg,
        suffix_neg=kept.suffix_pos,
        baseline_pos=kept.baseline_neg,
        baseline_neg=kept.baseline_pos,
        return_pos=kept.return_neg,
        return_neg=kept.return_pos,
        score_pos=kept.score_neg,
        score_neg=kept.score_pos,
        fluency_pos=kept.fluency_neg,
        fluency_neg=kept.fluency_pos,
    )
