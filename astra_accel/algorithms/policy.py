"""Policy gradients on trees: what GRPO, RLOO and PPO share. Each probe of a tree is an example.

The ratio divides a probe's probability under the current tester by that under the tester that wrote it. The latter is
computed once per experience, before the first update, in the same way as in training. Reusing the log-probs from
sampling would save that pass, but they differ by rounding, and by more if a merged adapter or lower precision sampled:
then the ratio would not be 1 before the first update.

So there are two policies with the same weights: the denominator of the ratio (``old``) and the one that sampled
(``behaviour``). Where they differ, the samples are not from the old policy, and the clipped loss of each token is
weighted by ``min(old / behaviour, importance_cap)``: truncated importance sampling (Yao et al. 2025, "Your efficient RL
framework secretly brings you off-policy RL training", https://fengyao.notion.site/off-policy-rl; truncation bounds the
variance, as in V-trace, Espeholt et al. 2018, https://arxiv.org/abs/1802.01561). In float32 the weights are 1 up to
rounding.

All these log-probs are of the full distribution at temperature 1, whatever top-p, top-k or temperature the tokens were
sampled with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Generic, Self, TypeVar

import torch

from astra_accel.algorithms.credit import Credit
from astra_accel.algorithms.options import check_choice, check_fraction, check_not_negative, check_positive, token_mask
from astra_accel.core.algorithm import Algorithm, Batch
from astra_accel.core.optional import CountsProbeTokens, CountsTokens, HasBaseline, RecordsLogprobs, offers
from astra_accel.core.system import ActionT, StateT, System

KL_ESTIMATORS = ("k1", "k2", "k3")
KL_PLACES = ("loss", "reward")
IMPORTANCE_CAP = 2.0
"""The cap of Yao et al. (see above). Weights due to rounding alone are mostly within a tenth of 1."""
MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped here (without gradient beyond it), so that their exponentials stay finite."""


@dataclass(frozen=True)
class ProbeStep(Generic[StateT, ActionT]):
    """A probe in its context, and its return.

    Attributes:
        context, probe: the context, and the probe that was written in it.
        reward: what it earned.
        old_logprobs: the log-prob of each of its tokens under the tester that wrote it, once known.
        baseline_logprobs: the same under the baseline; None if no KL is needed.
        behaviour_logprobs: the same as recorded when the probe was sampled; None if unknown.
    """

    context: StateT
    probe: ActionT
    reward: float
    old_logprobs: tuple[float, ...] | None = None
    baseline_logprobs: tuple[float, ...] | None = None
    behaviour_logprobs: tuple[float, ...] | None = field(default=None, kw_only=True)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the probe.

        Raises:
            ValueError: ``precompute`` has not added their log-probs yet.
        """
        if self.old_logprobs is None:
            raise ValueError("an example has no log-probs of the tester that wrote it; call precompute on it first")
        return len(self.old_logprobs)


StepT = TypeVar("StepT", bound=ProbeStep)


@dataclass(frozen=True)
class ProbeBatch(Generic[StateT, ActionT]):
    """A batch of probes with the log-probs of their tokens.

    Attributes:
        contexts, probes: one entry per example.
        mask_BT: which positions hold a token.
        old_BT: the log-probs of the tokens under the tester that wrote them, 0 elsewhere.
        baseline_BT: the same under the baseline; None if no KL is needed.
        behaviour_BT: the same as recorded when the probes were sampled, or ``old_BT`` for a probe without a record;
            None if no probe has one.
    """

    contexts: Sequence[StateT]
    probes: Sequence[ActionT]
    mask_BT: torch.Tensor
    old_BT: torch.Tensor
    baseline_BT: torch.Tensor | None
    behaviour_BT: torch.Tensor | None = field(default=None, kw_only=True)

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def clipped_loss(log_ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float) -> torch.Tensor:
    """``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` with ``r = exp(log_ratio)``, elementwise.

    The clipped surrogate of PPO: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7, with a separate
    bound for each side as in DAPO (clip-higher, https://arxiv.org/abs/2503.14476).
    """
    ratio = bounded_exp(log_ratio)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def bounded_exp(log_ratio: torch.Tensor) -> torch.Tensor:
    """The exponential of a log-ratio, which is clamped to :data:`MAX_LOG_RATIO` either way."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def is_clipped(log_ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float) -> torch.Tensor:
    """Where the clipped surrogate has no gradient, as 0 and 1."""
    ratio = log_ratio.exp()
    return (((ratio < 1 - clip_low) & (advantages < 0)) | ((ratio > 1 + clip_high) & (advantages > 0))).float()


def kl_estimate(logprobs: torch.Tensor, baseline: torch.Tensor, estimator: str) -> torch.Tensor:
    """An estimate of ``KL(pi || ref)`` from tokens that ``pi`` sampled, elementwise.

    With ``d = log pi - log ref``: ``k1 = d``, unbiased; ``k2 = d^2 / 2``, of low variance; ``k3 = exp(-d) - 1 + d``,
    unbiased and never negative (J. Schulman 2020, http://joschu.net/blog/kl-approx.html). In a loss, only the
    gradients matter: in expectation over samples of ``pi``, that of k2 is the gradient of the divergence, that of k3
    the gradient of the reverse divergence ``KL(ref || pi)``, and that of k1 is 0. Multiplied by the ratio to the
    policy that sampled, k1 and k3 have the gradient of the divergence too (DeepSeek-V3.2,
    https://arxiv.org/abs/2512.02556).
    """
    d = (logprobs - baseline).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return d
    return d.square() / 2 if estimator == "k2" else torch.exp(-d) - 1 + d


class PolicyGradient(Algorithm[StateT, ActionT, StepT, Batch]):
    """The options and the log-probs that algorithms on single probes share.

    Args:
        system: scores probes under the tester and the baseline.
        clip: how far the ratio may move from 1 before the loss stops rewarding it.
        clip_high: the same for ratios above 1; None uses ``clip``.
        kl_coef: how strongly the tester is held to the baseline; 0 needs no baseline.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``: see :func:`kl_estimate`.
        kl_in: ``"loss"``: the estimate is added to each token's loss; ``"reward"``: the estimate for the tester that
            wrote the probe is subtracted from its reward.
        kl_weighted: whether to multiply the estimate in the loss by the ratio of the probe's tokens.
        credit, discount: how returns are computed, see :class:`~astra_accel.algorithms.credit.Credit`.
        importance_cap: the largest importance weight of a token's loss, for sampling in another precision than
            training; at least 1, or None for no weights.
    """

    def __init__(
        self,
        system: System[StateT, ActionT],
        *,
        clip: float,
        clip_high: float | None,
        kl_coef: float,
        kl_estimator: str,
        kl_in: str,
        kl_weighted: bool,
        credit: str,
        discount: float,
        importance_cap: float | None,
    ) -> None:
        check_positive("clip", clip)
        check_fraction("clip", clip)
        check_positive("clip_high", clip if clip_high is None else clip_high)
        check_not_negative("kl_coef", kl_coef)
        check_choice("kl_estimator", kl_estimator, KL_ESTIMATORS)
        check_choice("kl_in", kl_in, KL_PLACES)
        if kl_coef and (kl_estimator, kl_in, kl_weighted) == ("k1", "loss", False):
            raise ValueError(
                "kl_estimator is 'k1' in the loss, where its gradient is 0 on average; expected k2, k3 or kl_weighted"
            )
        if kl_weighted and kl_in == "reward":
            raise ValueError("kl_weighted is set, but kl_in is 'reward', where the ratio is 1; expected kl_in 'loss'")
        if importance_cap is not None and not 1 <= importance_cap < inf:
            raise ValueError(f"importance_cap is {importance_cap}, expected at least 1, or None for no weights")
        super().__init__(system)
        self.importance_cap = importance_cap
        self.clip_low = clip
        self.clip_high = clip if clip_high is None else clip_high
        self.kl_coef = kl_coef
        self.kl_estimator = kl_estimator
        self.kl_in = kl_in
        self.kl_weighted = kl_weighted
        self.credit = Credit(credit, discount)

    def num_tokens(self, steps: Sequence[StepT]) -> int | None:
        """The number of distinct tokens of the probes in their contexts, if the system can count them."""
        if not offers(self.system, CountsTokens):
            return None
        return self.system.num_tokens([step.context for step in steps], [step.probe for step in steps])

    @torch.no_grad()
    def precompute(self, steps: Sequence[StepT]) -> list[StepT]:
        """Add the log-probs under the current tester, as recorded in sampling, and under the baseline.

        Raises:
            ValueError: for some probe, the system recorded another number of log-probs than it computes.
        """
        if not steps:
            return []
        contexts, probes = [step.context for step in steps], [step.probe for step in steps]
        known = self.ask_writer(contexts, probes)
        num_tokens = token_mask(self.system, probes, known["old_logprobs"]).sum(-1).tolist()
        if self.kl_coef:
            known["baseline_logprobs"] = self.system.get_baseline_logprobs(contexts, probes)
        rows: dict[str, Any] = {name: _rows(values_BT, num_tokens) for name, values_BT in known.items()}
        rows["behaviour_logprobs"] = self._ask_sampler(probes, num_tokens)
        return [replace(step, **{name: rows[name][row] for name in rows}) for row, step in enumerate(steps)]

    def ask_writer(self, contexts: Sequence[StateT], probes: Sequence[ActionT]) -> dict[str, torch.Tensor]:
        """What the current tester computes for each token, ``[batch, tokens]``, by the step field that holds it."""
        return {"old_logprobs": self.system.get_tester_logprobs(contexts, probes)}

    def _ask_sampler(self, probes: Sequence[ActionT], num_tokens: Sequence[int]) -> Sequence[tuple[float, ...] | None]:
        """The log-probs of each probe's tokens as recorded in sampling; None if unknown."""
        if not offers(self.system, RecordsLogprobs):
            return [None] * len(probes)
        rows = [None if row is None else tuple(row) for row in self.system.sampled_logprobs(probes)]
        if not offers(self.system, CountsProbeTokens):
            # A last token that is certain counts as padding: see `num_probe_tokens`.
            rows = [row and row[:count] for row, count in zip(rows, num_tokens, strict=True)]
        for row, count, probe in zip(rows, num_tokens, probes, strict=True):
            if row is not None and len(row) != count:
                raise ValueError(
                    f"sampled_logprobs gives {len(row)} log-probs of the probe {str(probe)[:80]!r}, of which "
                    f"get_tester_logprobs gives {count}; expected one a token of both"
                )
        return rows

    def weigh(self, loss_BT: torch.Tensor, batch: ProbeBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Multiply each token's clipped loss by its importance weight, ``min(exp(old - behaviour), importance_cap)``.

        Also returns how far apart the two policies are and the weights, for the logs.
        """
        if batch.behaviour_BT is None:
            return loss_BT, {}
        gap_BT = (batch.old_BT - batch.behaviour_BT).to(loss_BT.device)
        ratio_BT = bounded_exp(gap_BT)
        figures = {"behaviour_gap": gap_BT.abs(), "importance_ratio": ratio_BT}
        if self.importance_cap is None:
            return loss_BT, figures
        weight_BT = ratio_BT.clamp(max=self.importance_cap)
        figures |= {"importance_weight": weight_BT, "importance_capped": (ratio_BT > self.importance_cap).float()}
        return loss_BT * weight_BT, figures

    def check_sampler(self, sampler: Any) -> None:
        """Refuse a KL without a baseline."""
        system = getattr(sampler, "system", None)
        if self.kl_coef and system is not None and not offers(system, HasBaseline):
            raise ValueError(
                f"kl_coef is {self.kl_coef}, but {type(system).__name__} has no baseline (get_baseline_logprobs); "
                f"expected kl_coef 0"
            )

    def kl_of(self, step: StepT) -> list[float]:
        """The KL estimate of each token of a probe under the tester that wrote it; 0 without a baseline."""
        if step.old_logprobs is None or step.baseline_logprobs is None:
            return [0.0] * step.num_tokens
        old, baseline = torch.tensor(step.old_logprobs), torch.tensor(step.baseline_logprobs)
        return kl_estimate(old, baseline, self.kl_estimator).tolist()

    def add_kl(
        self, loss_BT: torch.Tensor, logprobs_BT: torch.Tensor, log_ratio_BT: torch.Tensor, batch: ProbeBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add the KL to the baseline to each token's loss if ``kl_in`` is ``"loss"``; also return it for the logs."""
        if batch.baseline_BT is None:
            return loss_BT, {}
        kl_BT = kl_estimate(logprobs_BT, batch.baseline_BT, self.kl_estimator)
        if self.kl_in == "reward":
            return loss_BT, {"kl": kl_BT}
        term_BT = kl_BT * bounded_exp(log_ratio_BT) if self.kl_weighted else kl_BT
        return loss_BT + self.kl_coef * term_BT, {"kl": kl_BT}


def collate_probes(steps: Sequence[ProbeStep[StateT, ActionT]]) -> dict[str, Any]:
    """The fields of a :class:`ProbeBatch`."""
    num_tokens_B = torch.tensor([step.num_tokens for step in steps])
    baseline = [step.baseline_logprobs for step in steps if step.baseline_logprobs is not None]
    return {
        "contexts": [step.context for step in steps],
        "probes": [step.probe for step in steps],
        "mask_BT": torch.arange(int(num_tokens_B.max())) < num_tokens_B[:, None],
        "old_BT": pad_rows([step.old_logprobs or () for step in steps]),
        "baseline_BT": pad_rows(baseline) if len(baseline) == len(steps) else None,
        "behaviour_BT": _behaviour(steps),
    }


def _behaviour(steps: Sequence[ProbeStep]) -> torch.Tensor | None:
    if all(step.behaviour_logprobs is None for step in steps):
        return None
    return pad_rows(
        [(step.old_logprobs or ()) if step.behaviour_logprobs is None else step.behaviour_logprobs for step in steps]
    )


def pad_rows(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """Stack rows of numbers as float32 ``[rows, longest]``, padded with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)


def _rows(values_BT: torch.Tensor, lengths: Sequence[int]) -> list[tuple[float, ...]]:
    return [tuple(row[:length]) for row, length in zip(values_BT.tolist(), lengths, strict=True)]
