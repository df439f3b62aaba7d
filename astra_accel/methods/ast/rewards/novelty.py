"""What terms of novelty share: the probes of earlier experiences to compare a probe with."""

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
    """A sample, of bounded size, of all texts that were added; one that was added often may be in it often.

    Each text draws a number, and those with the smallest numbers stay: reservoir sampling by random keys (bottom-k).
    The number follows from the seed and from where in the run the text was said, so the contents follow from what was
    said, and from nothing else.

    Without a half-life every text is as likely to stay as any other. With one, a text weighs half as much as one that
    was said a half-life after it, and those that stay are drawn by weight without replacement (Efraimidis and Spirakis
    2006, https://doi.org/10.1016/j.ipl.2005.11.003): numbers are exponential variables with the weights as rates, as
    logarithms, whose range no run exceeds.

    Args:
        size: texts at most.
        seed: of the numbers.
        half_life: in places of the run; None is without end.

    Attributes:
        texts: the texts that stayed; another tuple whenever they change.

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
        """Show it texts in an order that follows from the run, said at a place of the run that has not been before."""
        with np.errstate(divide="ignore"):  # a number of 0 comes first
            numbers = np.log(-np.log1p(-uniforms((self.seed, RESERVOIR_STREAM, place), len(texts))))
        if self.half_life is not None:
            numbers -= place * math.log(2) / self.half_life
        self._keep([*self._numbered, *zip(numbers.tolist(), texts, strict=True)])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        numbers = [number for number, _ in self._numbered]
        return {"numbers": numbers, "texts": list(self.texts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; of a larger reservoir, what a smaller one would have kept.

        What was said before keeps its number, so another half-life holds for what is said from now on.
        """
        self._keep(list(zip(state["numbers"], state["texts"], strict=True)))

    def _keep(self, numbered: list[tuple[float, str]]) -> None:
        self._numbered = sorted(numbered)[: self.size]
        self.texts = tuple(text for _, text in self._numbered)


class Novelty(RewardTerm):
    """How unlike a probe is to those of earlier experiences: 0 like one of them, 1 before there are any.

    A probe is compared with a :class:`~astra_accel.methods.ast.rewards.novelty.Reservoir` of earlier probes, which
    changes between experiences alone. So it is judged alike whatever process it is rolled out on and whatever beside.
    A blank probe earns 0: silence is nothing new.

    Args:
        reservoir_size: earlier probes to compare with, at most.
        seed: of their choice.
        reservoir_half_life: experiences after which a probe weighs half in that choice; None is without end.

    Raises:
        ValueError: ``reservoir_size`` is below 1, or ``reservoir_half_life`` is not above 0.
    """

    def __init__(self, reservoir_size: int = 256, seed: int = 0, reservoir_half_life: float | None = None) -> None:
        self.reservoir = Reservoir(reservoir_size, seed, reservoir_half_life)
        self._compared_with: tuple[str, ...] = ()

    @abstractmethod
    def compare_with(self, earlier: Sequence[str]) -> None:
        """Get ready for comparisons with other earlier probes than before; there is at least one."""

    @abstractmethod
    def novelty(self, probes: Sequence[str]) -> list[float]:
        """The novelty of distinct probes, none of them blank, beside those of :meth:`compare_with`."""

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
        """Probes that later ones are compared with: all of an experience, in the order of its episodes."""
        self.reservoir.add([text for text in probes if text.strip()], experience)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"reservoir": self.reservoir.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.reservoir.load_state(state["reservoir"])
