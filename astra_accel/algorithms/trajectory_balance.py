"""Trajectory balance on siblings: the tester learns to sample in proportion to a reward, so it keeps many modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch

from astra_accel.algorithms.credit import Credit
from astra_accel.algorithms.options import check_positive, token_mask
from astra_accel.core.algorithm import Algorithm, ReplayEntry
from astra_accel.core.optional import CountsTokens, offers
from astra_accel.core.sampler import Graph, response_score
from astra_accel.core.system import ActionT, StateT, System


@dataclass(frozen=True)
class TBStep(Generic[StateT, ActionT]):
    """The probes of a context, with their returns.

    Attributes:
        context: the context in which all were written.
        probes: two or more probes, possibly with repeats.
        returns: the return of each probe.
        scores: how unsafe the response to each was judged; None if unknown.
        baseline: the log-prob of each probe under the baseline, once known.
        fluencies: the same, as a mean per token.
    """

    context: StateT
    probes: tuple[ActionT, ...]
    returns: tuple[float, ...]
    scores: tuple[float | None, ...]
    baseline: tuple[float, ...] | None = None
    fluencies: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TBBatch(Generic[StateT, ActionT]):
    """The probes of several groups, one group after another.

    Attributes:
        contexts, probes: one entry per probe.
        group: the index of each probe's group, ``[probes]``.
        returns: the return of each probe, ``[probes]``.
        baseline: log-probs under the baseline, ``[probes]``; None if not known yet.
    """

    contexts: Sequence[StateT]
    probes: Sequence[ActionT]
    group: torch.Tensor
    returns: torch.Tensor
    baseline: torch.Tensor | None


def group_variance(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """The pooled variance of values within their groups: ``sum_i (v_i - mean of its group)^2 / sum_g (n_g - 1)``.

    Args:
        values: the value of each probe, ``[probes]``.
        group: the index of each probe's group, ``[probes]``, from 0; every group has two or more probes.
    """
    num_groups = int(group.max()) + 1
    sizes = torch.bincount(group, minlength=num_groups).to(values)
    # A product with ones and zeros: an indexed addition has no fixed order on a GPU.
    member = torch.nn.functional.one_hot(group, num_groups).to(values)
    means = member.T @ values / sizes
    return (values - member @ means).square().sum() / (sizes - 1).sum()


class TB(Algorithm[StateT, ActionT, TBStep, TBBatch]):
    """The tester learns to sample each probe with probability ``baseline(p | c) * exp(return / beta) / Z(c)``.

    A generative flow network has converged when ``log Z(c) + log pi(p | c)`` equals
    ``log baseline(p | c) + return / beta`` for every probe: trajectory balance, Malkin et al. 2022,
    https://arxiv.org/abs/2201.13259; on language models Hu et al. 2023, https://arxiv.org/abs/2310.04363, and for red
    teaming Lee et al. 2024, https://arxiv.org/abs/2405.18540. ``Z`` depends on the context alone, so siblings determine
    it: with ``d_i = log pi(p_i | c) - log baseline(p_i | c) - return_i / beta`` the loss is the variance of ``d`` among
    siblings (VarGrad, Richter et al. 2020, https://arxiv.org/abs/2010.10436), pooled over the contexts of a batch. The
    siblings' mean contributes no gradient, since the deviations from it add up to 0.

    It holds for probes of any policy as long as they are diverse, so ``training.replay`` may bring back earlier ones.
    Siblings with equal returns teach too: how the baseline distributes them.

    Args:
        system: scores probes under the tester and the baseline.
        beta: how strongly the tester is held to the baseline. Smaller is greedier.
        credit, discount: what counts towards a probe's return: its own reward, or later ones too. See
            :class:`~astra_accel.algorithms.credit.Credit`.
    """

    off_policy = True  # the balance must hold at every probe, whichever policy wrote it
    step_types = (TBStep,)

    def __init__(
        self, system: System[StateT, ActionT], beta: float = 0.1, *, credit: str = "immediate", discount: float = 1.0
    ) -> None:
        check_positive("beta", beta)
        super().__init__(system)
        self.beta = beta
        self.credit = Credit(credit, discount)

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[TBStep[StateT, ActionT]]:
        """The siblings of each context that has two or more, parents before children."""
        return [
            TBStep(
                siblings[0][0].context,
                tuple(node.probe for node, _ in siblings),
                tuple(earned for _, earned in siblings),
                tuple(response_score(node) for node, _ in siblings),
            )
            for siblings in self.credit.siblings(graph)
            if len(siblings) > 1
        ]

    @torch.no_grad()
    def precompute(self, steps: Sequence[TBStep[StateT, ActionT]]) -> list[TBStep[StateT, ActionT]]:
        """Add the baseline's log-probs, which stay the same over the epochs of an experience."""
        if not steps:
            return []
        batch = self.collate_fn(steps)
        logprobs_BT = self.system.get_baseline_logprobs(batch.contexts, batch.probes)
        sums_B = logprobs_BT.sum(-1)
        num_tokens_B = token_mask(self.system, batch.probes, logprobs_BT).sum(-1)
        sums, means = _by_group(sums_B, steps), _by_group(sums_B / num_tokens_B.clamp(min=1), steps)
        return [
            replace(step, baseline=baseline, fluencies=fluencies)
            for step, baseline, fluencies in zip(steps, sums, means, strict=True)
        ]

    @staticmethod
    def collate_fn(batch: Sequence[TBStep[StateT, ActionT]]) -> TBBatch[StateT, ActionT]:
        """Concatenate the probes of all groups."""
        known = [step.baseline for step in batch if step.baseline is not None]
        baseline = torch.tensor([value for values in known for value in values])
        return TBBatch(
            contexts=[step.context for step in batch for _ in step.probes],
            probes=[probe for step in batch for probe in step.probes],
            group=torch.tensor([number for number, step in enumerate(batch) for _ in step.probes]),
            returns=torch.tensor([earned for step in batch for earned in step.returns]),
            baseline=baseline if len(known) == len(batch) else None,
        )

    def weight(self, step: TBStep[StateT, ActionT]) -> float:
        """The degrees of freedom of a group's variance: its number of probes minus 1."""
        return len(step.probes) - 1.0

    def num_tokens(self, steps: Sequence[TBStep[StateT, ActionT]]) -> int | None:
        """The number of distinct tokens of the probes in their contexts, if the system can count them."""
        if not offers(self.system, CountsTokens):
            return None
        batch = self.collate_fn(steps)
        return self.system.num_tokens(batch.contexts, batch.probes)

    def replay_entry(self, step: TBStep[StateT, ActionT]) -> ReplayEntry:
        """Rank by the probe with the highest return."""
        best = max(range(len(step.probes)), key=step.returns.__getitem__)
        fluency = None if step.fluencies is None else step.fluencies[best]
        return ReplayEntry(step.returns[best], (step.probes[best],), fluency, step.scores[best])

    def step(self, batch: TBBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The pooled variance of a batch of groups, in nats squared."""
        tester = self.system.get_tester_logprobs(batch.contexts, batch.probes).sum(-1)
        if batch.baseline is None:
            with torch.no_grad():
                baseline = self.system.get_baseline_logprobs(batch.contexts, batch.probes).sum(-1)
        else:
            baseline = batch.baseline.to(tester)
        wanted, group = batch.returns.to(tester) / self.beta, batch.group.to(tester.device)
        log_ratio = tester - baseline
        loss = group_variance(log_ratio - wanted, group)
        with torch.no_grad():
            logs = {
                # The loss is the variance of their difference, so it is 0 when the two agree within each group.
                "tb/log_ratio_variance": group_variance(log_ratio, group),
                "tb/return_variance": group_variance(wanted, group),
            }
        return loss, logs

    def check_sampler(self, sampler: Any) -> None:
        """Refuse trees without siblings."""
        width = getattr(sampler, "tree_width", None)
        if width is not None and width < 2:
            raise ValueError(f"tree_width is {width}, but {type(self).__name__} compares siblings; expected at least 2")


def _by_group(values: torch.Tensor, steps: Sequence[TBStep]) -> Iterator[tuple[float, ...]]:
    remaining = iter(values.tolist())
    for step in steps:
        yield tuple(next(remaining) for _ in step.probes)
