"""What a reward is made of: a term, and the turns that it judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Turns:
    """A batch of turns, one entry per turn.

    Attributes:
        system: whose turns they are; it knows the models.
        contexts: the states in which the probes were written.
        probes: what the tester wrote.
        responses: what the target answered.
    """

    system: Any
    contexts: Sequence[Any]
    probes: Sequence[Any]
    responses: Sequence[Any]

    @cached_property
    def probe_texts(self) -> list[str]:
        """The probes as texts."""
        return [str(probe) for probe in self.probes]

    @cached_property
    def response_texts(self) -> list[str]:
        """The responses as texts."""
        return [str(response) for response in self.responses]

    @cached_property
    def exchange_texts(self) -> list[str]:
        """Each probe and its response as one text."""
        return [self.system.exchange_text(*pair) for pair in zip(self.probes, self.responses, strict=True)]


class RewardTerm(ABC):
    """One quantity of a turn, which a reward weighs.

    A term of one's own needs a name and :meth:`values`::

        class Questions(RewardTerm):
            name = "questions"

            def values(self, turns):
                return [float("?" in text) for text in turns.probe_texts]

    A term that remembers what was said may have three methods more:

    - ``observe(probes, experience)`` is told the texts of all probes of an experience in the order of its episodes, and
      its number: after it, and the same on every process;
    - ``state()`` returns what it remembers, as strings, numbers, tensors, lists and dicts of them, for checkpoints;
    - ``load_state(state)`` brings that back.

    Attributes:
        name: of its column in ``rollouts/``, and after ``reward/`` in ``metrics.jsonl``.
    """

    name: str

    @abstractmethod
    def values(self, turns: Turns) -> Sequence[float | None]:
        """One finite number per turn, not weighted; None where it could not be had.

        A turn's value must not depend on the others of the batch: which are judged together follows from the number
        of processes.
        """
