"""The parts of a reward: a term, and the turns that it judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from astra_accel.core.outcomes import outcome_of
from astra_accel.core.prompt import goal_of
from astra_accel.core.scorer import Turn


@dataclass(frozen=True)
class Turns:
    """A batch of turns, one entry per turn.

    Attributes:
        system: the system that rolled out the turns; it holds the models.
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
    def outcomes(self) -> list[str]:
        """What came of each question."""
        return list(map(outcome_of, self.responses))

    @cached_property
    def as_judged(self) -> list[Turn]:
        """The turns as scorers see them."""
        texts = zip(self.probe_texts, self.response_texts, self.contexts, strict=True)
        return [Turn(probe, response, str(context), goal_of(context)) for probe, response, context in texts]

    @cached_property
    def exchange_texts(self) -> list[str]:
        """Each probe and its response as one text."""
        return [self.system.exchange_text(*pair) for pair in zip(self.probes, self.responses, strict=True)]


class RewardTerm(ABC):
    """One quantity of a turn, which a reward weighs.

    A custom term needs a name and :meth:`values`::

        class Questions(RewardTerm):
            name = "questions"

            def values(self, turns):
                return [float("?" in text) for text in turns.probe_texts]

    A term with a memory may have three more methods:

    - ``observe(probes, experience)`` gets the texts of all probes of an experience in the order of its episodes, and
      its number: after the experience, and the same on every process;
    - ``state()`` returns the memory for checkpoints, as strings, numbers, tensors, lists and dicts of them;
    - ``load_state(state)`` restores it.

    Attributes:
        name: the name of its column in ``rollouts/``, and after ``reward/`` in ``metrics.jsonl``.
    """

    name: str

    @abstractmethod
    def values(self, turns: Turns) -> Sequence[float | None]:
        """Return one finite, unweighted number per turn; None if missing.

        A turn's value must not depend on the rest of the batch: which turns are judged together depends on the number
        of processes.
        """


# What a term with a memory may have besides; :class:`RewardTerm` documents each method.


class ObservesProbes(Protocol):
    """Without it, a term learns nothing of earlier experiences."""

    def observe(self, probes: Sequence[str], experience: int) -> None:
        """Take in the probes of an experience."""


class HasState(Protocol):
    """Without it, checkpoints hold nothing of a term."""

    def state(self) -> Any:
        """Return the memory."""


class RestoresState(Protocol):
    """Without it, a term of a resumed run begins anew."""

    def load_state(self, state: Any) -> None:
        """Restore the memory."""
