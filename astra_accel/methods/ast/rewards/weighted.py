"""The reward: a weighted sum of terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from astra_accel.core.optional import offers
from astra_accel.methods.ast.rewards.term import HasState, ObservesProbes, RestoresState, RewardTerm, Turns

# Names that other columns of rollouts and figures of rewards already have.
RESERVED = (
    *("reward", "mean", "std", "max"),
    *("step", "episode", "path", "turn", "context", "probe", "response", "probe_tokens", "response_tokens"),
    *("probe_thinking", "response_thinking"),
)


class RewardError(RuntimeError):
    """A term did not return one finite number (or None) per turn, or a reward is not finite."""


class WeightedTerms:
    """The terms of a reward with their weights, by name.

    Args:
        terms: weights and terms. A term of weight 0 is only computed and logged.

    Attributes:
        terms: the terms by name.
        weights: their weights by name.

    Raises:
        ValueError: two terms share a name, a name is taken, or a weight is not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, RewardTerm]]) -> None:
        self.terms: dict[str, RewardTerm] = {}
        self.weights: dict[str, float] = {}
        for weight, term in terms:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of the reward's term {term.name!r} is {weight}, expected a finite number")
            if term.name in RESERVED:
                raise ValueError(f"a term of the reward is called {term.name!r}, which is the name of something else")
            if term.name in self.terms:
                raise ValueError(f"two terms of the reward are called {term.name!r}; expected a name of its own each")
            self.terms[term.name] = term
            self.weights[term.name] = weight

    def parts(self, turns: Turns) -> list[dict[str, float | None]]:
        """For each turn, its unweighted terms, and their weighted sum as ``reward``; missing ones are None.

        Raises:
            RewardError: a value is invalid; the message names the term, the probe and the value.
        """
        columns = {name: _checked(term, turns) for name, term in self.terms.items()}
        rows = [{name: column[row] for name, column in columns.items()} for row in range(len(turns.probes))]
        return [{"reward": self._sum(row, text), **row} for row, text in zip(rows, turns.probe_texts, strict=True)]

    def observe(self, probes: Sequence[str], experience: int) -> None:
        """Pass all probes of an experience to the terms that have a memory."""
        for term in self.terms.values():
            if offers(term, ObservesProbes):
                term.observe(probes, experience)

    def state(self) -> dict[str, Any]:
        """The state of the terms that have a memory, by name."""
        return {name: term.state() for name, term in self.terms.items() if offers(term, HasState)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned. A new term starts empty; the state of a removed one is ignored."""
        for name, term in self.terms.items():
            if name in state and offers(term, RestoresState):
                term.load_state(state[name])

    def _sum(self, values: dict[str, float | None], probe: str) -> float | None:
        """The weighted sum; None if a term that counts is missing, since a partial sum would be another reward."""
        reward = 0.0
        for name, value in values.items():
            if value is not None:
                reward += self.weights[name] * value
            elif self.weights[name]:
                return None
        if not math.isfinite(reward):
            raise RewardError(f"the reward of the probe {probe[:80]!r} is {reward}, of the terms {values}")
        return reward


def _checked(term: RewardTerm, turns: Turns) -> list[float | None]:
    values: Any = term.values(turns)
    if isinstance(values, str | bytes | Mapping) or not (hasattr(values, "__len__") and hasattr(values, "__iter__")):
        found = "None" if values is None else f"a {type(values).__name__}"
        raise RewardError(
            f"the reward's term {term.name!r} gave {found} for {len(turns.probes)} turns; expected a list of values"
        )
    if len(values) != len(turns.probes):
        raise RewardError(f"the reward's term {term.name!r} gave {len(values)} values for {len(turns.probes)} turns")
    return [_number(term, value, text) for value, text in zip(values, turns.probe_texts, strict=True)]


def _number(term: RewardTerm, value: Any, probe: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, SupportsFloat) or not math.isfinite(value):
        raise RewardError(
            f"the reward's term {term.name!r} is {value!r} for the probe {probe[:80]!r}; expected a finite number, or "
            f"None where it is missing"
        )
    return float(value)
