"""What novelty terms share: the probes of earlier experiences to compare a probe with."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astra_accel.methods.ast.rewards.term import RewardTerm, Turns
from astra_accel.models.decoding.token_sampling import uniforms

RESERVOIR_STREAM = 3


class Reservoir:
    """A sample of bounded size of all added texts; a text that was added several times may be in it several times.

    Each text draws a number, and the texts with the smallest numbers stay: reservoir sampling by random keys
    (bottom-k). The number follows from the seed and from where in the run the text was added, so the contents depend
    on the added texts and nothing else.

    Without a half-life every text is equally likely to stay. With one, a text weighs half as much as one that was
    added a half-life later, and those that stay are drawn by weight without replacement (Efraimidis and Spirakis
    2006, https://doi.org/10.1016/j.ipl.2005.11.003): numbers are exponential variables with the weights as rates,
    stored as logarithms, whose range no run exceeds.

    Args:
        size: the most texts to keep.
        seed: determines the numbers.
        half_life: the half-life in places of the run; None never reduces weights.

    Attributes:
        texts: the texts that stayed; a new tuple whenever they change.

    Raises:
        ValueError: ``size`` is below 1, or ``half_life`` is not above 0.
    """

    def __init__(self, size: int, seed: int = 0, half_life: float | None = None) -> None:
        if size < 1:
            raise ValueError(f"reservoir_size is {size}, expected at least 1")
        if half_life is not None and not half_life > 0:
            raise ValueError(f"reservoir_half_life is {half_life}, expected a number above 0, or None")
        self.size = size
        self.seed = seed
        self.half_life = half_life
        self._keep([])

    def add(self, texts: Sequence[str], place: int) -> None:
        """Add texts, in an order that follows from the run, at a place of the run that was not used before."""
        with np.errstate(divide="ignore"):  # log(0) is -inf, which sorts first
            numbers = np.log(-np.log1p(-uniforms((self.seed, RESERVOIR_STREAM, place), len(texts))))
        if self.half_life is not None:
            numbers -= place * math.log(2) / self.half_life
        self._keep([*self._numbered, *zip(numbers.tolist(), texts, strict=True)])

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        numbers = [number for number, _ in self._numbered]
        return {"numbers": numbers, "texts": list(self.texts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint; from a larger reservoir, keep what this size would have kept.

        Restored texts keep their numbers, so a changed half-life applies to texts added from now on.
        """
        self._keep(list(zip(state["numbers"], state["texts"], strict=True)))

    def _keep(self, numbered: list[tuple[float, str]]) -> None:
        self._numbered = sorted(numbered)[: self.size]
        self.texts = tuple(text for _, text in self._numbered)


class Novelty(RewardTerm):
    """How different a probe is from those of earlier experiences: 0 if like one of them, 1 before there are any.

    A probe is compared with a :class:`~astra_accel.methods.ast.rewards.novelty.Reservoir` of earlier probes, which
    only changes between experiences. So its value does not depend on its process or on the rest of the rollout.
    A blank probe earns 0: silence is nothing new.

    Args:
        reservoir_size: the most earlier probes to compare with.
        seed: determines which earlier probes are kept.
        reservoir_half_life: experiences after which a probe's weight in that choice halves; None never reduces it.

    Raises:
        ValueError: ``reservoir_size`` is below 1, or ``reservoir_half_life`` is not above 0.
    """

    def __init__(self, reservoir_size: int = 256, seed: int = 0, reservoir_half_life: float | None = None) -> None:
        self.reservoir = Reservoir(reservoir_size, seed, reservoir_half_life)
        self._compared_with: tuple[str, ...] = ()

    @abstractmethod
    def compare_with(self, earlier: Sequence[str]) -> None:
        """Prepare for comparisons with a changed set of earlier probes, at least one."""

    @abstractmethod
    def novelty(self, probes: Sequence[str]) -> list[float]:
        """The novelty of distinct, non-blank probes relative to those of :meth:`compare_with`."""

    def values(self, turns: Turns) -> list[float]:
        """One novelty per turn."""
        earlier = self.reservoir.texts
        if earlier and self._compared_with is not earlier:
            self.compare_with(earlier)
            self._compared_with = earlier
        probes = list(dict.fromkeys(text for text in turns.probe_texts if text.strip()))
        novel = self.novelty(probes) if earlier and probes else [1.0] * len(probes)
        found = dict(zip(probes, novel, strict=True))
        return [found.get(text, 0.0) for text in turns.probe_texts]

    def observe(self, probes: Sequence[str], experience: int) -> None:
        """Add the probes of an experience, in the order of its episodes, to those that later ones are compared with."""
        self.reservoir.add([text for text in probes if text.strip()], experience)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"reservoir": self.reservoir.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.reservoir.load_state(state["reservoir"])
