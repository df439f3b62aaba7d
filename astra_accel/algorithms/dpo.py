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
"""A node and its return."""


@dataclass(frozen=True)
class DPOStep(Generic[StateT, ActionT]):
    """A context with two probes, the first of which earned more.

    Attributes:
        prefix: the context.
        suffix_pos: the chosen probe.
        suffix_neg: the rejected probe.
        baseline_pos: log-prob of the chosen probe under the baseline, once known; with the IPO loss its mean over
            tokens.
        baseline_neg: the same for the rejected probe.
        return_pos: the return of the chosen probe, if known.
        return_neg: the same for the rejected probe.
        worst_return: the lowest return of any probe of the context.
        score_pos: how unsafe the response to the chosen probe was judged, if the reward reported it.
        score_neg: the same for the rejected probe.
        fluency_pos: mean log-prob per token of the chosen probe under the baseline, once known.
        fluency_neg: the same for the rejected probe.
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
        """The difference of the two returns."""
        if self.return_pos is None or self.return_neg is None:
            return None
        return self.return_pos - self.return_neg


@dataclass(frozen=True)
class DPOBatch(Generic[StateT, ActionT]):
    """The fields of a batch's steps, one entry per step; baseline log-probs and gaps are ``[batch]`` or None."""

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
      al. 2023, https://arxiv.org/abs/2305.18290, equation 7. ``e`` is the assumed probability that the preference is
      the wrong way round (cDPO, Mitchell 2023, https://ericmitchell.ai/cdpo.pdf).
    - ``ipo``: ``(h - 1 / (2 beta))^2``, Azar et al. 2023, https://arxiv.org/abs/2310.12036, equation 17. The paper
      uses log-probs of whole sequences; its authors' experiments took the mean over tokens, so that the target margin
      does not depend on length. Pass those means here.
    - ``hinge``: ``max(0, 1 - beta h)``, the calibration loss of SLiC-HF, Zhao et al. 2023,
      https://arxiv.org/abs/2305.10425, with log-ratios to the baseline in place of log-probs, as in Liu et al. 2023,
      https://arxiv.org/abs/2309.06657, and without SLiC's second term.
    - ``ctb``: ``(h - gap / beta)^2``, contrastive trajectory balance, Kwon et al. 2026,
      https://arxiv.org/abs/2605.00553, equation 3. The paper pulls ``log pi(w) - log pi(l)`` towards
      ``log R(w) - log R(l)``; here ``R = ref * exp(return / beta)``, so that the loss of all pairs is 0 when the
      tester samples in proportion to ``R``. In the paper ``R`` does not include the baseline.

    Args:
        tester_pos, tester_neg: log-probs of the probes under the tester, ``[batch]``, in nats.
        baseline_pos, baseline_neg: the same under the baseline.
        beta: how strongly the tester is held to the baseline.
        loss: one of :data:`LOSSES`.
        label_smoothing: ``e`` of the sigmoid loss.
        gap: the difference of the probes' returns, ``[batch]``, for the CTB loss.

    Raises:
        ValueError: the loss is ``ctb`` and no gap is given.
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

    The probes of a context are compared by their returns. Equal probes never form a pair, nor do probes with equal
    returns.

    Args:
        system: scores probes under the tester and the baseline.
        beta: how strongly the tester is held to the baseline.
        loss: ``"sigmoid"`` (DPO), ``"hinge"``, ``"ipo"`` or ``"ctb"``: see :func:`pair_loss`. IPO compares mean
            log-probs per token, the others log-probs of whole probes.
        label_smoothing: the assumed probability that a preference is the wrong way round; below 0.5, for the sigmoid
            loss.
        pairs: ``"best_worst"``: one pair per context, the best probe against the worst; ``"all"``: each probe against
            each that earned less; ``"adjacent"``: each against the next in the order of rewards.
        margin: the return gap that a pair must exceed.
        credit, discount: what counts towards a probe's return: its own reward, or later ones too. See
            :class:`~astra_accel.algorithms.credit.Credit`.
    """

    off_policy = True  # the preference in a pair does not depend on the policy that wrote it
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
        """The pairs of distinct probes among siblings, the better one first, whatever their gap."""
        if not siblings:
            return []
        ranked, worst = sorted(siblings, key=itemgetter(1), reverse=True), min(siblings, key=itemgetter(1))
        if self.pairs == "best_worst":
            candidates = [(ranked[0], worst)]
        else:
            candidates = list(combinations(ranked, 2) if self.pairs == "all" else pairwise(ranked))
        return [_pair(*both, worst[1]) for both in candidates if both[0][0].probe != both[1][0].probe]

    def keep(self, step: DPOStep[StateT, ActionT]) -> bool:
        """Whether the returns of a pair differ by more than the margin."""
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
        """The number of distinct tokens of both probes of all pairs, if the system can count them."""
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
        """Rank by the return of the chosen probe."""
        if step.return_pos is None:
            return None
        return ReplayEntry(step.return_pos, (step.suffix_pos,), step.fluency_pos, step.score_pos)

    def step(self, batch: DPOBatch[StateT, ActionT]) -> tuple[torch.Tensor, dict[str, Any]]:
        """The mean loss of a batch of pairs, and the usual DPO metrics (means over pairs, in nats)."""
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
        """Refuse trees without siblings to pair."""
        width = getattr(sampler, "tree_width", None)
        if width is not None and width < 2:
            raise ValueError(f"tree_width is {width}, but {type(self).__name__} compares siblings; expected at least 2")

    @torch.no_grad()
    def _baseline_logprobs(self, batch: DPOBatch[StateT, ActionT]) -> torch.Tensor:
        return _logprobs(self.system.get_baseline_logprobs, batch)

    def _with_baseline(
        self, steps: Sequence[DPOStep[StateT, ActionT]], batch: DPOBatch[StateT, ActionT], logprobs_BT: torch.Tensor
    ) -> list[DPOStep[StateT, ActionT]]:
        """Add the baseline's log-probs of both probes to the steps."""
        means = self._means(batch, logprobs_BT).chunk(2)
        known = zip(steps, *(column.tolist() for column in (*self._compared(batch, logprobs_BT), *means)), strict=True)
        return [
            replace(step, baseline_pos=pos, baseline_neg=neg, fluency_pos=mean_pos, fluency_neg=mean_neg)
            for step, pos, neg, mean_pos, mean_neg in known
        ]

    def _compared(
        self, batch: DPOBatch[StateT, ActionT], logprobs_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probs of chosen and of rejected probes as the loss compares them, ``[batch]`` each."""
        chosen, rejected = (self._means(batch, logprobs_BT) if self.loss == "ipo" else logprobs_BT.sum(-1)).chunk(2)
        return chosen, rejected

    def _means(self, batch: DPOBatch[StateT, ActionT], logprobs_BT: torch.Tensor) -> torch.Tensor:
        """The mean log-prob per token of the chosen probes, then of the rejected ones."""
        num_tokens_B = token_mask(self.system, _probes(batch), logprobs_BT).sum(-1)
        return logprobs_BT.sum(-1) / num_tokens_B.clamp(min=1)


class IPO(DPO[StateT, ActionT]):
    """Identity preference optimisation (https://arxiv.org/abs/2310.12036): :class:`DPO` with ``loss="ipo"``.

    The margin of a pair's mean log-probs per token is pulled towards ``1 / (2 beta)``, not beyond it.

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
    """The chosen probes, then the rejected ones."""
    return [*batch.suffix_pos, *batch.suffix_neg]


def _logprobs(logprobs_of: Any, batch: DPOBatch[StateT, ActionT]) -> torch.Tensor:
    """A model's token log-probs of the chosen probes, then of the rejected ones, ``[2 batch, tokens]``."""
    return logprobs_of([*batch.prefixes] * 2, _probes(batch))


def _tensor(values: Sequence[float | None]) -> torch.Tensor | None:
    return None if any(value is None for value in values) else torch.tensor(values, dtype=torch.float32)
