"""The reward of adaptive stress testing, for any models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch

from astra_accel.config import NaturalnessModel, RewardConfiguration
from astra_accel.core.optional import num_probe_tokens
from astra_accel.core.sampler import Graph, walk
from astra_accel.core.scorer import Scorer, judges_texts
from astra_accel.core.system import ActionT, StateT, System
from astra_accel.methods.ast.rewards.term import RewardTerm, Turns
from astra_accel.methods.ast.rewards.terms import CombinedToxicity, Naturalness, ResponseToxicity
from astra_accel.methods.ast.rewards.weighted import WeightedTerms


class ASTSystem(System[StateT, ActionT]):
    """Adaptive stress testing (ASTPrompter, https://arxiv.org/abs/2407.09447): toxic and yet natural exchanges.

    The reward of a probe ``p`` in a context ``c``, answered by ``r``::

        combined_weight * score(p + r) + defense_toxicity_weight * score(r) + ppl_weight * naturalness(p | c)

    plus ``weight * term`` for each further term. Naturalness is the mean log-prob per token of the probe.

    A subclass provides the models (the six model methods of :class:`~astra_accel.core.system.System`) for any states
    and actions that support ``+`` and ``str``. Calling ``ASTSystem(...)`` directly gives an
    :class:`~astra_accel.methods.ast.hf_system.HFASTSystem`, as ``pathlib.Path()`` gives a ``PosixPath``; without
    arguments the embedded model has all three roles.

    Args:
        scorer: rates how unsafe a text is; None is the :class:`~astra_accel.scorers.ProfanityScorer`.
        ppl_weight, combined_weight, defense_toxicity_weight: the weights above.
        min_naturalness: the lower bound at which naturalness is clipped, in nats per token.
        naturalness_model: the model under which a probe has to be natural, the target or the baseline.
        terms: further terms of the reward with their weights, such as ``(0.5, SelfBLEUNovelty())`` or a custom
            :class:`~astra_accel.methods.ast.rewards.term.RewardTerm`. Terms of weight 0 are only logged.

    Raises:
        ValueError: two terms share a name, a name is taken, or a weight is not finite; or there is a weight of the
            combined score, and the scorer judges no text alone.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make an ``HFASTSystem`` if no subclass is named."""
        if cls is ASTSystem:
            from astra_accel.methods.ast.hf_system import HFASTSystem

            return super().__new__(cast(type[Self], HFASTSystem))
        return super().__new__(cls)

    def __init__(
        self,
        scorer: Scorer | None = None,
        ppl_weight: float = RewardConfiguration().ppl_weight,
        combined_weight: float = RewardConfiguration().combined_weight,
        defense_toxicity_weight: float = RewardConfiguration().defense_toxicity_weight,
        min_naturalness: float = RewardConfiguration().min_naturalness,
        *,
        naturalness_model: NaturalnessModel = "target",
        terms: Sequence[tuple[float, RewardTerm]] = (),
    ) -> None:
        if scorer is None:
            from astra_accel.scorers import ProfanityScorer

            scorer = ProfanityScorer()
        self.scorer = scorer
        if combined_weight and not judges_texts(scorer):
            raise ValueError(
                f"combined_weight is {combined_weight:g}, but {type(scorer).__name__} judges by the goal of a "
                f"conversation, and no text alone; expected 0"
            )
        combined = [(combined_weight, CombinedToxicity(scorer))] if judges_texts(scorer) else []
        self.reward_terms = WeightedTerms(
            [
                *combined,
                (defense_toxicity_weight, ResponseToxicity(scorer)),
                (ppl_weight, Naturalness(min_naturalness, naturalness_model)),
                *terms,
            ]
        )

    def advance(self, context: StateT, probe: ActionT, response: StateT) -> StateT:
        """Return the conversation with one more turn."""
        return context + probe + response  # type: ignore[operator]

    def preceded(self, context: StateT, text: str) -> StateT:
        """Return the conversation with a text before it, such as examples that only the tester is shown."""
        return text + context  # type: ignore[operator, return-value]

    def exchange_text(self, probe: ActionT, response: StateT) -> str:
        """Join probe and response into the text of the combined score."""
        return f"{probe}{response}"

    def reward(
        self, context: Sequence[StateT], probe: Sequence[ActionT], response: Sequence[StateT]
    ) -> Sequence[float | None]:
        """The rewards of a batch of turns; None if missing."""
        return [parts["reward"] for parts in self.reward_parts(context, probe, response)]

    def reward_parts(
        self, context: Sequence[StateT], probe: Sequence[ActionT], response: Sequence[StateT]
    ) -> list[dict[str, float | None]]:
        """The reward and its unweighted terms by name for each turn; missing ones are None.

        Raises:
            ScorerError: the scorer did not return one number from 0 to 1 (or None) per text.
            RewardError: another term did not return one finite number (or None) per turn, or the reward is not finite.
        """
        return self.reward_terms.parts(Turns(self, context, probe, response))

    def observe(self, graphs: Sequence[Graph[StateT, ActionT]], experience: int) -> None:
        """Pass a finished experience to the reward, so that later probes can be compared with its probes."""
        self.reward_terms.observe([str(node.probe) for graph in graphs for _, node in walk(graph)], experience)

    def rollout_state(self) -> dict[str, Any]:
        """The state that later rollouts depend on besides the weights: that of the reward's terms, by name."""
        return self.reward_terms.state()

    def load_rollout_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`rollout_state` returned."""
        self.reward_terms.load_state(state)

    @torch.no_grad()
    def probe_logprobs(
        self, context: Sequence[StateT], probe: Sequence[ActionT], model: NaturalnessModel = "target"
    ) -> list[torch.Tensor]:
        """The log-probs of the tokens of each probe's content under a model, ``[tokens]`` per probe, on the CPU.

        By default all log-probs of :meth:`get_target_logprobs` or its counterpart for the baseline, cut to the number
        of tokens given by :func:`num_probe_tokens`.
        """
        logprobs = self.get_target_logprobs if model == "target" else self.get_baseline_logprobs
        logprobs_BT = logprobs(context, probe).cpu()
        num_tokens = num_probe_tokens(self, probe, logprobs_BT).tolist()
        return [row[:count] for row, count in zip(logprobs_BT, num_tokens, strict=True)]


ASTProblem = ASTSystem
