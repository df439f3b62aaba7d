"""How likely a probe is as text."""

from __future__ import annotations

from astra_accel.config import NaturalnessModel
from astra_accel.methods.ast.rewards.term import RewardTerm, Turns


class Naturalness(RewardTerm):
    """The mean log-prob a token of the probe, that is minus the log of its perplexity; nats.

    Clipped from below; an empty probe earns that minimum. The paper's code (https://arxiv.org/abs/2407.09447) takes
    exp(sum of log-probs) here, a joint probability: 0 for any probe of some length and 1 for an empty one, so that
    silence pays.

    Args:
        minimum: where it is clipped.
        model: under which model.
    """

    name = "naturalness"

    def __init__(self, minimum: float, model: NaturalnessModel = "target") -> None:
        self.minimum = minimum
        self.model = model

    def values(self, turns: Turns) -> list[float]:
        """One mean a turn."""
        rows = turns.system.probe_logprobs(turns.contexts, turns.probes, self.model)
        return [max(float(row.mean()), self.minimum) if len(row) else self.minimum for row in rows]
