"""GRPO and RLOO on trees: each probe is compared with the others in its group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import torch

from astra_accel.algorithms.options import check_choice
from astra_accel.algorithms.policy import (
    IMPORTANCE_CAP,
    PolicyGradient,
    ProbeBatch,
    ProbeStep,
    clipped_loss,
    collate_probes,
    is_clipped,
)
from astra_accel.core.sampler import Graph, walk
from astra_accel.core.system import ActionT, StateT, System

SCALES = ("group", "batch", "none")
NORMALIZATIONS = ("sequence", "token", "constant")
RATIOS = ("token", "sequence", "whole")
STD_FLOOR = 1e-4
"""Added to a standard deviation before it divides, as TRL does."""


@dataclass(frozen=True)
class GRPOStep(ProbeStep[StateT, ActionT]):
    """A probe and its group.

    Attributes:
        group: equal for probes that are compared with one another: siblings, that is the probes of an experience
            that were written in the same context; for a probe without siblings, those of the same turn after the
            same prompt.
        advantage: its return relative to its group, once known.
    """

    group: Hashable = None
    advantage: float = 0.0


@dataclass(frozen=True)
class GRPOBatch(ProbeBatch[StateT, ActionT]):
    """A batch of probes with their advantages, ``[batch]``."""

    advantages_B: torch.Tensor


def group_advantages(
    returns: Sequence[float], groups: Sequence[Hashable], scale: str = "group", leave_one_out: bool = False
) -> list[float]:
    """The advantage of each return over its group.

    ``A_i = (G_i - mean of the group) / (std + 1e-4)``: GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300,
    section 4.1.2. The standard deviation (over ``n - 1``) is that of the group, or of all returns; without it the
    advantages are those of Dr. GRPO, Liu et al. 2025, https://arxiv.org/abs/2503.20783. With ``leave_one_out`` the
    mean is over the other members, so ``A_i = n / (n - 1) (G_i - mean)``: RLOO, Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740. In a group without variance, such as a single probe, advantages are exactly 0.

    Args:
        returns: the returns of all probes of an experience.
        groups: the group of each probe.
        scale: one of :data:`SCALES`.
        leave_one_out: whether to compare with the mean of the other members.
    """
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, returns, strict=True):
        members.setdefault(group, []).append(value)
    spread_of_all = stdev(returns) if len(returns) > 1 else 0.0
    advantages = []
    for group, value in zip(groups, returns, strict=True):
        own = members[group]
        if min(own) == max(own):
            advantages.append(0.0)
            continue
        above = value - fmean(own)
        if leave_one_out:
            above *= len(own) / (len(own) - 1)
        if scale != "none":
            above /= (stdev(own) if scale == "group" else spread_of_all) + STD_FLOOR
        advantages.append(above)
    return advantages


def ratio_of(log_ratio_BT: torch.Tensor, mask_BT: torch.Tensor, level: str) -> torch.Tensor:
    """The log-ratio to use at each token, ``[batch, tokens]``.

    ``token``: the token's own (GRPO). ``sequence``: the mean over the probe's tokens (GSPO, Zheng et al. 2025,
    https://arxiv.org/abs/2507.18071). ``whole``: their sum, the ratio of the whole probe's probabilities (RLOO).
    """
    log_ratio_BT = log_ratio_BT.masked_fill(~mask_BT, 0.0)
    if level == "token":
        return log_ratio_BT
    log_ratio_B1 = log_ratio_BT.sum(-1, keepdim=True)
    if level == "sequence":
        log_ratio_B1 = log_ratio_B1 / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return log_ratio_B1.expand_as(log_ratio_BT)


def mean_of(values_BT: torch.Tensor, mask_BT: torch.Tensor, normalization: str, length: int | None) -> torch.Tensor:
    """Reduce the token values of a batch to one number.

    ``sequence``: the mean over probes of the mean over a probe's tokens (GRPO). ``token``: the mean over all tokens
    (DAPO, https://arxiv.org/abs/2503.14476). ``constant``: the mean over probes of the sum over a probe's tokens
    divided by ``length`` (Dr. GRPO, https://arxiv.org/abs/2503.20783), so that tokens of long probes don't count less.
    """
    sums_B = values_BT.masked_fill(~mask_BT, 0.0).sum(-1)
    num_tokens_B = mask_BT.sum(-1)
    if normalization == "token":
        return sums_B.sum() / num_tokens_B.sum().clamp(min=1)
    return (sums_B / (num_tokens_B.clamp(min=1) if length is None else length)).mean()


class GRPO(PolicyGradient[StateT, ActionT, GRPOStep, GRPOBatch]):
    """Group relative policy optimisation (https://arxiv.org/abs/2402.03300) of the tester.

    A probe's group is its siblings; if a context has only one probe, the probes of the same turn in all episodes of
    that prompt (``rollout.episodes_per_prompt``). With ``A`` from :func:`group_advantages`, ``r`` the ratio to the
    tester that wrote the probe and ``KL`` the estimate at each token::

        loss = mean over tokens of  -min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl_coef KL

    | variant | options |
    |---|---|
    | GRPO | the defaults |
    | DAPO | ``normalization="token", clip_high=0.28, kl_coef=0, min_spread=0``, without its resampling |
    | Dr. GRPO | ``scale="none", normalization="constant", length=<max_new_tokens>, kl_coef=0`` |
    | GSPO | ``ratio="sequence", clip=3e-4, clip_high=4e-4, kl_coef=0`` |

    The paper normalises the rewards of one question by their mean and deviation; here it is the returns (see
    ``credit``) in one context.

    Args:
        system: scores probes under the tester and the baseline.
        scale: what advantages are divided by: the standard deviation of the ``"group"``, of the ``"batch"`` (all
            returns of an experience), or ``"none"``.
        normalization: ``"sequence"``, ``"token"`` or ``"constant"``: see :func:`mean_of`.
        length: the divisor of ``"constant"``, such as the most tokens that a probe may have.
        ratio: ``"token"``, ``"sequence"`` or ``"whole"``: see :func:`ratio_of`.
        min_spread: a group is left out, and costs no update, unless its best and worst return differ by more than this
            (DAPO's filter, https://arxiv.org/abs/2503.14476, section 3.2). None keeps all groups; those without a
            difference still hold the tester to its baseline if the KL is in the loss.
        clip, clip_high, kl_coef, kl_estimator, kl_in, kl_weighted, credit, discount, importance_cap: see
            :class:`~astra_accel.algorithms.policy.PolicyGradient`. In the reward, a probe's KL is the sum over its own
            tokens only.
    """

    leave_one_out = False

    def __init__(
        self,
        system: System[StateT, ActionT],
        *,
        scale: str = "group",
        normalization: str = "sequence",
        length: int | None = None,
        ratio: str = "token",
        min_spread: float | None = None,
        clip: float = 0.2,
        clip_high: float | None = None,
        kl_coef: float = 0.04,
        kl_estimator: str = "k3",
        kl_in: str = "loss",
        kl_weighted: bool = False,
        credit: str = "immediate",
        discount: float = 1.0,
        importance_cap: float | None = IMPORTANCE_CAP,
    ) -> None:
        check_choice("scale", scale, SCALES)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("ratio", ratio, RATIOS)
        if (length is None) == (normalization == "constant") or (length is not None and length < 1):
            raise ValueError(
                f"length is {length} with normalization {normalization!r}; expected at least 1 with 'constant', "
                f"and none with any other"
            )
        if min_spread is not None and not 0 <= min_spread < math.inf:
            raise ValueError(
                f"min_spread is {min_spread}, expected a number of at least 0, or None to keep every group"
            )
        super().__init__(
            system,
            clip=clip,
            clip_high=clip_high,
            kl_coef=kl_coef,
            kl_estimator=kl_estimator,
            kl_in=kl_in,
            kl_weighted=kl_weighted,
            credit=credit,
            discount=discount,
            importance_cap=importance_cap,
        )
        self.scale = scale
        self.normalization = normalization
        self.length = length
        self.ratio = ratio
        self.min_spread = min_spread

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[GRPOStep[StateT, ActionT]]:
        """Every probe that has a reward, parents before children."""
        returns = self.credit.returns(graph)
        num_siblings = Counter(path[:-1] for path, _ in walk(graph))
        return [
            GRPOStep(
                node.context,
                node.probe,
                reward,
                group=(node.context if num_siblings[path[:-1]] > 1 else graph.context, len(path)),
            )
            for path, node in walk(graph)
            if (reward := returns[path]) is not None
        ]

    def choose(self, steps: Sequence[GRPOStep[StateT, ActionT]]) -> list[bool]:
        """Choose groups whose returns differ by more than ``min_spread``, before any KL is subtracted."""
        if self.min_spread is None:
            return [True] * len(steps)
        returns: dict[Hashable, list[float]] = {}
        for step in steps:
            returns.setdefault(step.group, []).append(step.reward)
        telling = {group for group, values in returns.items() if max(values) - min(values) > self.min_spread}
        return [step.group in telling for step in steps]

    def prepare(self, steps: Sequence[GRPOStep[StateT, ActionT]]) -> list[GRPOStep[StateT, ActionT]]:
        """Add the advantages."""
        returns = [step.reward for step in steps]
        if self.kl_in == "reward":
            returns = [step.reward - self.kl_coef * sum(self.kl_of(step)) for step in steps]
        advantages = group_advantages(returns, [step.group for step in steps], self.scale, self.leave_one_out)
        return [replace(step, advantage=advantage) for step, advantage in zip(steps, advantages, strict=True)]

    @staticmethod
    def collate_fn(batch: Sequence[GRPOStep[StateT, ActionT]]) -> GRPOBatch[StateT, ActionT]:
        """The fields of the steps as lists, numbers as float32 tensors."""
        return GRPOBatch(**collate_probes(batch), advantages_B=torch.tensor([step.advantage for step in batch]))

    def weight(self, step: GRPOStep[StateT, ActionT]) -> float:
        """The number of tokens if the loss is a mean over tokens, else 1."""
        return float(step.num_tokens) if self.normalization == "token" else 1.0

    def step(self, batch: GRPOBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss of a batch, and metrics averaged over its tokens in the same way."""
        logprobs_BT = self.system.get_tester_logprobs(batch.contexts, batch.probes)[:, : batch.mask_BT.shape[-1]]
        mask_BT, advantages_B1 = (
            batch.mask_BT.to(logprobs_BT.device),
            batch.advantages_B.to(logprobs_BT.device)[:, None],
        )
        log_ratio_BT = ratio_of(logprobs_BT - batch.old_BT.to(logprobs_BT.device), mask_BT, self.ratio)
        loss_BT = clipped_loss(log_ratio_BT, advantages_B1, self.clip_low, self.clip_high)
        loss_BT, figures = self.weigh(loss_BT, batch)
        loss_BT, kl_figures = self.add_kl(loss_BT, logprobs_BT, log_ratio_BT, batch)
        figures |= kl_figures | {
            "clip_fraction": is_clipped(log_ratio_BT, advantages_B1, self.clip_low, self.clip_high),
            "entropy": -logprobs_BT,
            "no_advantage": (advantages_B1 == 0).float().expand_as(logprobs_BT),
        }
        loss = mean_of(loss_BT, mask_BT, self.normalization, self.length)
        how = "sequence" if self.normalization == "constant" else self.normalization
        name = type(self).__name__.lower()
        return loss, {f"{name}/{key}": mean_of(value.detach(), mask_BT, how, None) for key, value in figures.items()}

    def check_sampler(self, sampler: Any) -> None:
        """Refuse trees in which a probe has no others to be compared with."""
        super().check_sampler(sampler)
        width, episodes = getattr(sampler, "tree_width", None), getattr(sampler, "episodes_per_prompt", 1)
        if width is not None and width < 2 and episodes < 2:
            raise ValueError(
                f"tree_width is {width} and episodes_per_prompt {episodes}, but {type(self).__name__} compares probes "
                f"with others of their group; expected at least 2 of either"
            )


class RLOO(GRPO[StateT, ActionT]):
    """REINFORCE leave-one-out (https://arxiv.org/abs/2402.14740) of the tester.

    A probe's advantage is its return minus the mean of the others in its group, and its ratio is that of the whole
    probe's probabilities; the KL to the baseline, log-ratios summed over its tokens, is subtracted from its reward. The
    paper makes one update per sample and so has no ratio; with several updates, it is clipped as in PPO.

    Args:
        system: scores probes under the tester and the baseline.
        scale: ``"none"``, or ``"batch"``, which divides advantages by the deviation of all returns of an experience.
        min_spread, clip, clip_high, kl_coef, kl_estimator, kl_in, kl_weighted, credit, discount, importance_cap: see
            :class:`GRPO`.
    """

    leave_one_out = True

    def __init__(
        self,
        system: System[StateT, ActionT],
        *,
        scale: str = "none",
        min_spread: float | None = None,
        clip: float = 0.2,
        clip_high: float | None = None,
        kl_coef: float = 0.05,
        kl_estimator: str = "k1",
        kl_in: str = "reward",
        kl_weighted: bool = False,
        credit: str = "immediate",
        discount: float = 1.0,
        importance_cap: float | None = IMPORTANCE_CAP,
    ) -> None:
        super().__init__(
            system,
            scale=scale,
            ratio="whole",
            min_spread=min_spread,
            clip=clip,
            clip_high=clip_high,
            kl_coef=kl_coef,
            kl_estimator=kl_estimator,
            kl_in=kl_in,
            kl_weighted=kl_weighted,
            credit=credit,
            discount=discount,
            importance_cap=importance_cap,
        )
