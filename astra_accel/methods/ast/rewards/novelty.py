"""What terms of novelty share: the probes of earlier experiences to compare a probe with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.methods.ast.rewards.reservoir import Reservoir
from astra_accel.methods.ast.rewards.term import RewardTerm, Turns


class Novelty(RewardTerm):
    """How unlike a probe is to those of earlier experiences: 0 like one of them, 1 before there are any.

    A probe is compared with a :class:`~astra_accel.methods.ast.rewards.reservoir.Reservoir` of earlier probes, which
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
        """One novelty a turn."""
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
