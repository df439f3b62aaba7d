"""Direct preference optimisation on trees: DPO, IPO and other losses on pairs of siblings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from operator import itemgetter
from typing import Any, Generic

import torch
import torch.nn.functional as F

from astra_accel.algorithms.credit import Credit
from astra_accel.algorithms.options import check_choice, check_positive, token_mask
from astra_accel.core.algorithm import Algorithm, ReplayEntry
from astra_accel.core.optional import CountsTokens, offers
from astra_accel.core.sampler import Graph, Node, response_score
from astra_accel.core.system import ActionT, StateT, System

LOSSES = ("sigmoid", "hinge", "ipo", "ctb")
PAIRS = ("best_worst", "all", "adjacent")

Returned = tuple[Node, float]
"""A node and what it earned."""


@dataclass(frozen=True)
class DPOStep(Generic[StateT, ActionT]):
    """A context with two probes of which the first earned more.

    Attributes:
        prefix: the context.
        suffix_pos: the chosen probe.
        suffix_neg: the rejected probe.
        baseline_pos: log-prob of the chosen probe under the baseline, once it is known; with the IPO loss its mean
            over tokens.
        baseline_neg: the same of the rejected probe.
        return_pos: what the chosen probe earned, where it is known.
        return_neg: the same of the rejected probe.
        worst_return: the least that any probe of the context earned.
        score_pos: how unsafe the response to the chosen probe was judged, where the reward told.
        score_neg: the same of the rejected probe.
        fluency_pos: mean log-prob a token of the chosen probe under the baseline, once it is known.
        fluency_neg: the same of the rejected probe.
    """

    prefix: StateT
    suffix_pos: ActionT
    suffix_neg: ActionT
    baseline_pos: float | None = None
    baseline_neg: float | None = None
    return_pos: float | None = None
    return_neg: float | None = None
    worst_return: float | None = None
    score_pos: float | None = None
    score_neg: float | None = None
    fluency_pos: float | None = None
    fluency_neg: float | None = None

    @property
    def gap(self) -> float | None:
        """How much more the chosen probe earned."""
        if self.return_pos is None or self.return_neg is None:
            return None
        return self.return_pos - self.return_neg


@dataclass(frozen=True)
class DPOBatch(Generic[StateT, ActionT]):
    """The fields of the steps of a batch, one entry a step; the baseline's log-probs and gaps ``[batch]`` or None."""

    prefixes: Sequence[StateT]
    suffix_pos: Sequence[ActionT]
    suffix_neg: Sequence[ActionT]
    baseline_pos: torch.Tensor | None = None
    baseline_neg: torch.Tensor | None = None
    gap: torch.Tensor | None = None


def pair_loss(
    tester_pos: torch.Tensor,
    tester_neg: torch.Tensor,
    baseline_pos: torch.Tensor,
    baseline_neg: torch.Tensor,
    beta: float,
    *,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    gap: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of each pair, shape ``[batch]``.

    With w the chosen and l the rejected probe, and the margin
    ``h = (log pi(w) - log ref(w)) - (log pi(l) - log ref(l))``:

    - ``sigmoid``: ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``. With ``e = 0`` that is DPO, Rafailov et
      al. 2023, https://arxiv.org/abs/2305.18290, equation 7. ``e`` is how often the preference is taken to be the
      wrong way round (cDPO, Mitchell 2023, https://ericmitchell.ai/cdpo.pdf).
    - ``ipo``: ``(h - 1 / (2 beta))^2``, Azar et al. 2023, https://arxiv.org/abs/2310.12036, equation 17. The paper
      writes log-probs of whole sequences; its authors' experiments took the mean over tokens, so that the distance
      that is aimed at does not depend on length. That is what to give here.
    - ``hinge``: ``max(0, 1 - beta h)``, the calibration loss of SLiC-HF, Zhao et al. 2023,
      https://arxiv.org/abs/2305.10425, with log-ratios to the baseline in place of log-probs, as in Liu et al. 2023,
      https://arxiv.org/abs/2309.06657, and without SLiC's second term.
    - ``ctb``: ``(h - gap / beta)^2``, contrastive trajectory balance, Kwon et al. 2026,
      https://arxiv.org/abs/2605.00553, equation 3. The paper draws ``log pi(w) - log pi(l)`` to
      ``log R(w) - log R(l)``; here ``R = ref * exp(return / beta)``, the baseline times the exponential of what a
      probe earned, so that all pairs are at 0 where the tester samples in proportion to ``R``. In the paper ``R`` has
      no baseline in it.

    Args:
        tester_pos, tester_neg: log-probs of the probes under the tester, ``[batch]``, in nats.
        baseline_pos, baseline_neg: the same under the baseline.
        beta: how strongly the tester is held to the baseline.
        loss: one of :data:`LOSSES`.
        label_smoothing: ``e`` of the sigmoid loss.
        gap: how much more the chosen probe earned, ``[batch]``, for the CTB loss.

    Raises:
        ValueError: the loss is ``ctb``, and nobody says what the probes earned.
    """
    margin = (tester_pos - baseline_pos) - (tester_neg - baseline_neg)
    if loss == "ipo":
        return (margin - 1 / (2 * beta)).square()
    if loss == "hinge":
        return F.relu(1 - beta * margin)
    if loss == "ctb":
        if gap is None:
            raise ValueError("loss 'ctb' compares what the probes earned, but a pair has no gap; expected one for each")
        return (margin - gap / beta).square()
    right, wrong = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    return right if label_smoothing == 0 else (1 - label_smoothing) * right + label_smoothing * wrong


class DPO(Algorithm[StateT, ActionT, DPOStep, DPOBatch]):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290) of the tester.

    The probes of a context are compared by what they earned. Probes that are the same never make a pair, nor do those
    that earned the same.

    Args:
        system: scores probes under the tester and the baseline.
        beta: how strongly the tester is held to the baseline.
        loss: ``"sigmoid"`` (DPO), ``"hinge"``, ``"ipo"`` or ``"ctb"``: see :func:`pair_loss`. IPO compares mean
            log-probs a token, the others those of whole probes.
        label_smoothing: how often a preference is taken to be the wrong way round; below 0.5, for the sigmoid loss.
        pairs: ``"best_worst"``: one pair a context, the best probe against the worst; ``"all"``: each probe against
            each that earned less; ``"adjacent"``: each against the next in the order of rewards.
        margin: how much more than this the chosen probe must have earned.
        credit, discount: what a probe earned: its reward at once, or also what followed it. See
            :class:`~astra_accel.algorithms.credit.Credit`.
    """

    off_policy = True  # a pair is preferred the same way round whoever wrote it
    step_types = (DPOStep,)

    def __init__(
        self,
        system: System[StateT, ActionT],
        beta: float = 0.1,
        *,
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        pairs: str = "best_worst",
        margin: float = 0.0,
        credit: str = "immediate",
        discount: float = 1.0,
    ) -> None:
        check_positive("beta", beta)
        check_choice("loss", loss, LOSSES)
        check_choice("pairs", pairs, PAIRS)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected at least 0 and less than 0.5")
        if label_smoothing and loss != "sigmoid":
            raise ValueError(f"label_smoothing is {label_smoothing}, but loss {loss!r} has none; expected 0")
        if not margin >= 0:
            raise ValueError(f"margin is {margin}, expected at least 0")
        super().__init__(system)
        self.beta = beta
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.pairs = pairs
        self.margin = margin
        self.credit = Credit(credit, discount)

    def flatten(self, graph: Graph[StateT, ActionT]) -> list[DPOStep[StateT, ActionT]]:
        """The pairs of each context, parents before children."""
        siblings = self.credit.siblings(graph)
        return [step for nodes in siblings for step in self.compare(nodes) if self.keep(step)]

    def compare(self, siblings: Sequence[Returned]) -> list[DPOStep[StateT, ActionT]]:
        """The pairs of siblings and returns, the better one first: of distinct probes, whatever their gap."""
        if not siblings:
            return []
        ranked, worst = sorted(siblings, key=itemgetter(1), reverse=True), min(siblings, key=itemgetter(1))
        if self.pairs == "best_worst":
            candidates = [(ranked[0], worst)]
        else:
            candidates = list(combinations(ranked, 2) if self.pairs == "all" else pairwise(ranked))
        return [_pair(*both, worst[1]) for both in candidates if both[0][0].probe != both[1][0].probe]

    def keep(self, step: DPOStep[StateT, ActionT]) -> bool:
        """Whether the probes of a pair differ by more than the margin in what they earned."""
        return step.gap is None or step.gap > self.margin

    @staticmethod
    def collate_fn(batch: Sequence[DPOStep[StateT, ActionT]]) -> DPOBatch[StateT, ActionT]:
        """The fields of the steps as lists, the baseline's log-probs as float32 tensors."""
        return DPOBatch(
            prefixes=[step.prefix for step in batch],
            suffix_pos=[step.suffix_pos for step in batch],
            suffix_neg=[step.suffix_neg for step in batch],
            baseline_pos=_tensor([step.baseline_pos for step in batch]),
            baseline_neg=_tensor([step.baseline_neg for step in batch]),
            gap=_tensor([step.gap for step in batch]),
        )

    def num_tokens(self, steps: Sequence[DPOStep[StateT, ActionT]]) -> int | None:
        """Distinct tokens of both probes of all pairs, where the system can count them."""
        if not offers(self.system, CountsTokens):
            return None
        batch = self.collate_fn(steps)
        return self.system.num_tokens([*batch.prefixes] * 2, _probes(batch))

    def precompute(self, steps: Sequence[DPOStep[StateT, ActionT]]) -> list[DPOStep[StateT, ActionT]]:
        """Add the baseline's log-probs, which stay the same over the epochs of an experience."""
        if not steps:
            return []
        batch = self.collate_fn(steps)
        return self._with_baseline(steps, batch, self._baseline_logprobs(batch))

    def replay_entry(self, step: DPOStep[StateT, ActionT]) -> ReplayEntry | None:
        """By what the chosen probe earned."""
        if step.return_pos is None:
            return None
        return ReplayEntry(step.return_pos, (step.suffix_pos,), step.fluency_pos, step.score_pos)

    def step(self, batch: DPOBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The mean loss of a batch of pairs, and the usual figures of DPO (means over pairs, in nats)."""
        tester_pos, tester_neg = self._compared(batch, _logprobs(self.system.get_tester_logprobs, batch))
        if batch.baseline_pos is None or batch.baseline_neg is None:
            baseline_pos, baseline_neg = self._compared(batch, self._baseline_logprobs(batch))
        else:
            baseline_pos = batch.baseline_pos.to(tester_pos.device)
            baseline_neg = batch.baseline_neg.to(tester_pos.device)
        logprobs = tester_pos, tester_neg, baseline_pos, baseline_neg
        gap = None if batch.gap is None else batch.gap.to(tester_pos.device)
        loss = pair_loss(*logprobs, self.beta, loss=self.loss, label_smoothing=self.label_smoothing, gap=gap).mean()
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
            if self.loss == "ctb" and gap is not None:
                logs["dpo/return_gap"] = gap.mean()
        return loss, logs

    def check_sampler(self, sampler: Any) -> None:
        """Pairs need siblings."""
        width = getattr(sampler, "tree_width", None)
        if width is not None and width < 2:
            raise ValueError(f"tree_width is {width}, but {type(self).__name__} compares siblings; expected at least 2")

    @torch.no_grad()
    def _baseline_logprobs(self, batch: DPOBatch[StateT, ActionT]) -> torch.Tensor:
        return _logprobs(self.system.get_baseline_logprobs, batch)

    def _with_baseline(
        self, steps: Sequence[DPOStep[StateT, ActionT]], batch: DPOBatch[StateT, ActionT], logprobs_BT: torch.Tensor
    ) -> list[DPOStep[StateT, ActionT]]:
        """Steps with what the baseline says of both of their probes."""
        means = self._means(batch, logprobs_BT).chunk(2)
        known = zip(steps, *(column.tolist() for column in (*self._compared(batch, logprobs_BT), *means)), strict=True)
        return [
            replace(step, baseline_pos=pos, baseline_neg=neg, fluency_pos=mean_pos, fluency_neg=mean_neg)
            for step, pos, neg, mean_pos, mean_neg in known
        ]

    def _compared(
        self, batch: DPOBatch[StateT, ActionT], logprobs_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the loss compares of the log-probs of chosen and of rejected probes, ``[batch]`` each."""
        chosen, rejected = (self._means(batch, logprobs_BT) if self.loss == "ipo" else logprobs_BT.sum(-1)).chunk(2)
        return chosen, rejected

    def _means(self, batch: DPOBatch[StateT, ActionT], logprobs_BT: torch.Tensor) -> torch.Tensor:
        """The mean log-prob a token of the chosen, then of the rejected probes."""
        num_tokens_B = token_mask(self.system, _probes(batch), logprobs_BT).sum(-1)
        return logprobs_BT.sum(-1) / num_tokens_B.clamp(min=1)


class IPO(DPO[StateT, ActionT]):
    """Identity preference optimisation (https://arxiv.org/abs/2310.12036): :class:`DPO` with ``loss="ipo"``.

    The margin of a pair's mean log-probs a token is drawn to ``1 / (2 beta)``, and not beyond it.

    Args:
        system: scores probes under the tester and the baseline.
        beta: how strongly the tester is held to the baseline (tau in the paper).
        pairs, margin, credit, discount: see :class:`DPO`.
    """

    def __init__(
        self,
        system: System[StateT, ActionT],
        beta: float = 0.1,
        *,
        pairs: str = "best_worst",
        margin: float = 0.0,
        credit: str = "immediate",
        discount: float = 1.0,
    ) -> None:
        super().__init__(system, beta, loss="ipo", pairs=pairs, margin=margin, credit=credit, discount=discount)


def _pair(chosen: Returned, rejected: Returned, worst_return: float) -> DPOStep:
    (better, more), (worse, less) = chosen, rejected
    if better.context != worse.context:
        raise ValueError(f"siblings of a graph have different contexts: {better.context!r} and {worse.context!r}")
    returns = {"return_pos": more, "return_neg": less, "worst_return": worst_return}
    scores = {"score_pos": response_score(better), "score_neg": response_score(worse)}
    return DPOStep(better.context, better.probe, worse.probe, **returns, **scores)


def _probes(batch: DPOBatch[StateT, ActionT]) -> list[ActionT]:
    """The chosen, then the rejected ones."""
    return [*batch.suffix_pos, *batch.suffix_neg]


def _logprobs(logprobs_of: Any, batch: DPOBatch[StateT, ActionT]) -> torch.Tensor:
    """A model's log-probs of the tokens of the chosen, then of the rejected probes, ``[2 batch, tokens]``."""
    return logprobs_of([*batch.prefixes] * 2, _probes(batch))


def _tensor(values: Sequence[float | None]) -> torch.Tensor | None:
    return None if any(value is None for value in values) else torch.tensor(values, dtype=torch.float32)
