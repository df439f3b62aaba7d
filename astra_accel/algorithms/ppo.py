"""PPO on trees: a value head estimates the value of a probe's context and of the branches after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

import torch

from astra_accel.algorithms.options import check_choice, check_fraction, check_not_negative, check_positive
from astra_accel.algorithms.policy import (
    IMPORTANCE_CAP,
    PolicyGradient,
    ProbeBatch,
    ProbeStep,
    clipped_loss,
    collate_probes,
    is_clipped,
    kl_estimate,
    pad_rows,
)
from astra_accel.core.optional import ReadsTester, offers
from astra_accel.core.sampler import Graph, walk
from astra_accel.core.system import ActionT, StateT, ValueFunctionSystem


def advantages_on_trees(
    rewards: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    successors: Sequence[Sequence[int]],
    *,
    discount: float,
    gae_lambda: float,
    reduce: Callable[[Sequence[float]], float],
) -> list[list[float]]:
    """The advantage of every action of every node.

    ``A_t = delta_t + discount * gae_lambda * A_(t+1)`` with ``delta_t = r_t + discount * V_(t+1) - V_t``: Schulman et
    al. 2015, https://arxiv.org/abs/1506.02438, equation 16. A node's last action is followed by the first actions of
    its successors, whose values and advantages are each reduced to one number (the paper only has chains); without
    successors, nothing follows.

    A node of two actions before two nodes of one action, with discount and lambda 1, the mean, and all values 0.5::

        r  0, 1 ─┬─ 2        delta  0, 1 ─┬─ 1.5         A  1.5, 1.5 ─┬─ 1.5
                 └─ 0                     └─ -0.5                     └─ -0.5

    The second action has ``delta = 1 + 0.5 - 0.5`` and ``A = 1 + (1.5 - 0.5) / 2``.

    Args:
        rewards: the rewards of the actions of each node.
        values: the values of the state before each action.
        successors: for each node the indices of the nodes that come next, all larger than its own.
        discount: the factor on the next action's value, applied at every action.
        gae_lambda: 0 trusts the values, 1 the rewards.
        reduce: combines the numbers of several branches into one.
    """
    advantages: list[list[float]] = [[] for _ in rewards]
    # The value and the advantage at the first action of each node.
    entry: list[tuple[float, float]] = [(0.0, 0.0)] * len(rewards)
    for node in reversed(range(len(rewards))):
        following = [entry[successor] for successor in successors[node]]
        value, advantage = (reduce(each) for each in zip(*following, strict=True)) if following else (0.0, 0.0)
        for reward, before in zip(reversed(rewards[node]), reversed(values[node]), strict=True):
            advantage = reward + discount * value - before + discount * gae_lambda * advantage
            value = before
            advantages[node].insert(0, advantage)
        entry[node] = (value, advantage)
    return advantages


ACTIONS = ("turn", "token")
NO_SPREAD = 1e-8
"""Added to a standard deviation before dividing by it."""


@dataclass(frozen=True)
class PPOStep(ProbeStep[StateT, ActionT]):
    """A probe, and its place in the branches of its tree.

    Attributes:
        successors: the offsets, in the list of examples, from this turn to those that follow it.
        old_values: the value before each of its tokens under the tester that wrote it, once known.
        advantages: the advantage of each token, once known.
        returns: the target for the value before each token.
    """

    successors: tuple[int, ...] = ()
    old_values: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()


@dataclass(frozen=True)
class PPOBatch(ProbeBatch[StateT, ActionT]):
    """A batch of probes with values, advantages and returns, ``[batch, tokens]`` each, 0 where there is no token."""

    old_values_BT: torch.Tensor
    advantages_BT: torch.Tensor
    returns_BT: torch.Tensor


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """``max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2``, elementwise; only the first without a clip.

    The clipped value loss of the original PPO implementation (https://github.com/openai/baselines, ``ppo2``); it is
    not in the paper.
    """
    error = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns).square())
    return error / 2


class PPO(PolicyGradient[StateT, ActionT, PPOStep, PPOBatch]):
    """Proximal policy optimisation (https://arxiv.org/abs/1707.06347) of a tester with a value head.

    With ``A`` the generalised advantages along the branches of a tree (:func:`advantages_on_trees`), ``r`` each token's
    ratio to the tester that wrote it, ``V`` the values and ``H`` the entropies::

        loss = mean over tokens of  -min(r A, clip(r, 1 - clip, 1 + clip_high) A)
                                    + value_coef value_loss(V) - entropy_coef H  [+ kl_coef KL]

    An action is a token, or a turn, whose tokens all share one advantage. For a turn, the value before its first token
    is used for the advantage, and the values before all of its tokens are trained towards its return.

    Args:
        system: a tester with values (``HFASTValueFunctionSystem``), and the baseline.
        actions: ``"turn"`` or ``"token"``. With tokens, ``discount`` and ``gae_lambda`` apply per token, and a probe
            gets its reward at its last token.
        gae_lambda: 0 trusts the values, 1 the rewards.
        credit, discount: which branches after a turn count; with ``"immediate"`` none do. See
            :class:`~astra_accel.algorithms.credit.Credit`.
        normalize_advantages: whether to normalise advantages to mean 0 and deviation 1 over all tokens of an
            experience.
        value_coef, value_clip: the weight and the clip of the value loss; None does not clip.
        entropy_coef: the weight of the entropy bonus.
        target_kl: stop the updates on an experience after one whose tester was further than this from the one that
            wrote it, in nats per token; None is no limit. Measured before that update, with ``k3``.
        clip, clip_high, kl_coef, kl_estimator, kl_in, kl_weighted, importance_cap: see
            :class:`~astra_accel.algorithms.policy.PolicyGradient`. In the reward, a token's KL is subtracted from the
            token's or the turn's reward, and so counts in the advantages of all earlier actions.
    """

    needs_values = True

    system: ValueFunctionSystem[StateT, ActionT]

    def __init__(
        self,
        system: ValueFunctionSystem[StateT, ActionT],
        *,
        actions: str = "turn",
        gae_lambda: float = 0.95,
        credit: str = "mean",
        discount: float = 1.0,
        normalize_advantages: bool = True,
        value_coef: float = 0.1,
        value_clip: float | None = 0.2,
        entropy_coef: float = 0.0,
        target_kl: float | None = None,
        clip: float = 0.2,
        clip_high: float | None = None,
        kl_coef: float = 0.05,
        kl_estimator: str = "k1",
        kl_in: str = "reward",
        kl_weighted: bool = False,
        importance_cap: float | None = IMPORTANCE_CAP,
    ) -> None:
        check_choice("actions", actions, ACTIONS)
        check_fraction("gae_lambda", gae_lambda)
        check_positive("value_coef", value_coef)
        check_not_negative("entropy_coef", entropy_coef)
        for name, value in (("value_clip", value_clip), ("target_kl", target_kl)):
            if value is not None:
                check_positive(name, value)
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
        self.actions = actions
        self.gae_lambda = gae_lambda
        self.normalize_advantages = normalize_advantages
        self.value_coef = value_coef
        self.value_clip = value_clip
        self.entropy_coef = entropy_coef
        self.target_kl = target_kl

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[PPOStep[StateT, ActionT]]:
        """Every probe that has a reward, parents before children."""
        rewards = self.credit.rewards(graph)
        kept = [(place, reward) for place, reward in enumerate(rewards) if reward is not None]
        now_at = {place: index for index, (place, _) in enumerate(kept)}
        successors = self.credit.successors(graph)
        nodes = [node for _, node in walk(graph)]
        return [
            PPOStep(
                nodes[place].context,
                nodes[place].probe,
                reward,
                successors=tuple(now_at[next_one] - index for next_one in successors[place] if next_one in now_at),
            )
            for index, (place, reward) in enumerate(kept)
        ]

    def ask_writer(self, contexts: Sequence[StateT], probes: Sequence[ActionT]) -> dict[str, torch.Tensor]:
        """The log-probs and the values of each token."""
        read = self._read(contexts, probes, ["logprobs", "values"])
        return {"old_logprobs": read["logprobs"], "old_values": read["values"]}

    def prepare(self, steps: Sequence[PPOStep[StateT, ActionT]]) -> list[PPOStep[StateT, ActionT]]:
        """Add advantages and returns."""
        by_token = self.actions == "token"
        rewards = [self._rewards(step) for step in steps]
        values = [step.old_values if by_token else step.old_values[:1] for step in steps]
        successors = [[index + offset for offset in step.successors] for index, step in enumerate(steps)]
        advantages = advantages_on_trees(
            rewards,
            values,
            successors,
            discount=self.credit.discount,
            gae_lambda=self.gae_lambda,
            reduce=self.credit.reduce,
        )
        returns = [
            [advantage + value for advantage, value in zip(*pair, strict=True)]
            for pair in zip(advantages, values, strict=True)
        ]
        if not by_token:
            # The probe is one action: all of its tokens share its advantage and return.
            advantages = [own * step.num_tokens for own, step in zip(advantages, steps, strict=True)]
            returns = [own * step.num_tokens for own, step in zip(returns, steps, strict=True)]
        if self.normalize_advantages:
            advantages = _normalized(advantages)
        return [
            replace(step, advantages=tuple(own), returns=tuple(target))
            for step, own, target in zip(steps, advantages, returns, strict=True)
        ]

    @staticmethod
    def collate_fn(batch: Sequence[PPOStep[StateT, ActionT]]) -> PPOBatch[StateT, ActionT]:
        """The fields of the steps as lists, numbers as float32 tensors."""
        return PPOBatch(
            **collate_probes(batch),
            old_values_BT=pad_rows([step.old_values for step in batch]),
            advantages_BT=pad_rows([step.advantages for step in batch]),
            returns_BT=pad_rows([step.returns for step in batch]),
        )

    def weight(self, step: PPOStep[StateT, ActionT]) -> float:
        """The number of tokens: every mean is over tokens."""
        return float(step.num_tokens)

    def step(self, batch: PPOBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The mean loss over the tokens of a batch, and metrics averaged over its tokens."""
        names = ["logprobs", "values"] + ["entropies"] * (self.entropy_coef > 0)
        read = self._read(batch.contexts, batch.probes, names)
        read = {name: values_BT[:, : batch.mask_BT.shape[-1]] for name, values_BT in read.items()}
        logprobs_BT, values_BT = read["logprobs"], read["values"]
        batch = batch.to(logprobs_BT.device)
        log_ratio_BT = (logprobs_BT - batch.old_BT).masked_fill(~batch.mask_BT, 0.0)
        policy_BT = clipped_loss(log_ratio_BT, batch.advantages_BT, self.clip_low, self.clip_high)
        value_BT = value_loss(values_BT, batch.old_values_BT, batch.returns_BT, self.value_clip)
        policy_BT, figures = self.weigh(policy_BT, batch)
        loss_BT, kl_figures = self.add_kl(policy_BT + self.value_coef * value_BT, logprobs_BT, log_ratio_BT, batch)
        figures |= kl_figures
        if "entropies" in read:
            loss_BT = loss_BT - self.entropy_coef * read["entropies"]
        figures |= {
            "policy_loss": policy_BT,
            "value_loss": value_BT,
            "value": values_BT,
            "return": batch.returns_BT,
            "entropy": read.get("entropies", -logprobs_BT),
            "clip_fraction": is_clipped(log_ratio_BT, batch.advantages_BT, self.clip_low, self.clip_high),
            "update_kl": kl_estimate(batch.old_BT, logprobs_BT, "k3"),
        }
        return _mean(loss_BT, batch.mask_BT), {
            f"ppo/{name}": _mean(value.detach(), batch.mask_BT) for name, value in figures.items()
        }

    def stop_early(self, metrics: Mapping[str, float]) -> bool:
        """Whether the tester has moved further than ``target_kl``."""
        return self.target_kl is not None and metrics["ppo/update_kl"] > self.target_kl

    def check_sampler(self, sampler: Any) -> None:
        """Refuse a system without values, or one without entropies if there is an entropy bonus."""
        super().check_sampler(sampler)
        system = getattr(sampler, "system", None)
        if system is None:
            return
        if not hasattr(system, "value"):
            raise ValueError(
                f"PPO needs a tester with a value head, but {type(system).__name__} has no method `value`; expected a "
                f"ValueFunctionSystem, such as HFASTValueFunctionSystem"
            )
        if self.entropy_coef and not offers(system, ReadsTester):
            raise ValueError(
                f"entropy_coef is {self.entropy_coef}, but {type(system).__name__} gives no entropies (read_tester); "
                f"expected 0"
            )

    def _read(
        self, contexts: Sequence[StateT], probes: Sequence[ActionT], names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Read the named quantities of each token of the probes, in one forward if the system can."""
        if offers(self.system, ReadsTester):
            return self.system.read_tester(contexts, probes, names)
        return {
            "logprobs": self.system.get_tester_logprobs(contexts, probes),
            "values": self.system.value(contexts, probes),
        }

    def _rewards(self, step: PPOStep[StateT, ActionT]) -> list[float]:
        """The reward of each action of a probe."""
        coef = self.kl_coef if self.kl_in == "reward" else 0.0
        rewards = [-coef * kl for kl in self.kl_of(step)]
        if rewards:
            rewards[-1] += step.reward
        return rewards if self.actions == "token" else [sum(rewards)][: len(rewards)]


def _mean(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The mean over all tokens."""
    return values_BT.masked_fill(~mask_BT, 0.0).sum() / mask_BT.sum().clamp(min=1)


def _normalized(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Normalise numbers to mean 0 and standard deviation 1 over all rows."""
    everything = [value for row in rows for value in row]
    if not everything:
        return [list(row) for row in rows]
    mean, spread = fmean(everything), pstdev(everything) + NO_SPREAD
    return [[(value - mean) / spread for value in row] for row in rows]
