"""A scorer rates how unsafe a text is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from astra_accel.core.prompt import Goal

Categories = Mapping[str, Sequence[float | None]]
"""For each kind of harm, by name, one score per text, on the scale of :class:`Scorer`: 0 is safe, None is missing."""


ROUNDING = 1e-5
"""How far a score may lie outside 0 to 1 by rounding."""


@dataclass(frozen=True)
class Turn:
    """A turn as a scorer may see it.

    Attributes:
        probe: what the tester wrote.
        response: what the target answered, and what is judged.
        conversation: all that was said before, as one text.
        goal: what the conversation is to bring out, if its prompt says so.
    """

    probe: str
    response: str
    conversation: str = ""
    goal: Goal | None = None


class ScorerError(RuntimeError):
    """A scorer did not return one number from 0 to 1 (or None) per text, or a mapping for its categories."""


class Scorer(ABC):
    """Scores texts from 0 (safe) to 1 (unsafe).

    A missing score, such as that of a text that a service refuses, is None. The turn then has no reward, is not
    trained on, and does not enter any mean. nan is a defect, not a score, and raises an error, as does a number
    outside 0 to 1.

    Attributes:
        judges_texts: whether it can judge a text alone (:meth:`score`), and not only turns. Without that the reward has
            no combined score, and evaluations no scores of probes.
    """

    judges_texts = True

    @abstractmethod
    def score(self, texts: Sequence[str]) -> Sequence[float | None]:
        """Return one score per text, in order."""

    def score_exchanges(self, probes: Sequence[str], responses: Sequence[str]) -> Sequence[float | None]:
        """Return one score per response, given the probe that it answers.

        By default only the response is judged; a scorer that reads conversations overrides this.
        """
        if len(probes) != len(responses):
            raise ValueError(f"{len(probes)} probes and {len(responses)} responses: expected as many of each")
        return self.score(responses)

    def score_turns(self, turns: Sequence[Turn]) -> Sequence[float | None]:
        """Return one score per response, given the whole turn: its goal, and the conversation before it.

        By default only the exchange is judged, as in :meth:`score_exchanges`.
        """
        return self.score_exchanges([turn.probe for turn in turns], [turn.response for turn in turns])

    def score_categories(self, texts: Sequence[str]) -> Categories:  # noqa: ARG002
        """Return scores for each kind of harm that the scorer distinguishes, one per text; by default none.

        The set of kinds must not depend on the texts. Evaluations use these scores; the reward never does.
        """
        return {}

    def score_exchange_categories(self, probes: Sequence[str], responses: Sequence[str]) -> Categories:
        """Return scores for each kind of harm in the responses, given the probes that they answer.

        By default only the responses are judged, as in :meth:`score_exchanges`.
        """
        if len(probes) != len(responses):
            raise ValueError(f"{len(probes)} probes and {len(responses)} responses: expected as many of each")
        return self.score_categories(responses)


def judges_texts(scorer: Any) -> bool:
    """Whether a scorer can judge a text alone."""
    return getattr(scorer, "judges_texts", True)


def response_scores(scorer: Any, turns: Sequence[Turn]) -> list[float | None]:
    """Return one checked score per response, judged with as much of its turn as the scorer reads.

    Raises:
        ScorerError: the scorer did not return one number from 0 to 1 (or None) per text.
    """
    responses = [turn.response for turn in turns]
    if hasattr(scorer, "score_turns"):
        scores = scorer.score_turns(turns)
    elif hasattr(scorer, "score_exchanges"):
        scores = scorer.score_exchanges([turn.probe for turn in turns], responses)
    else:  # a scorer written for the reference implementation
        scores = scorer.score(responses)
    return check_scores(scorer, responses, scores)


def response_categories(scorer: Any, probes: Sequence[str], responses: Sequence[str]) -> dict[str, list[float | None]]:
    """Return the checked scores for each kind of harm in the responses; empty if the scorer distinguishes none.

    Raises:
        ScorerError: for some kind, the scorer did not return one number from 0 to 1 (or None) per text.
    """
    # A scorer that does not inherit from ours may only have the categories of texts, or none.
    of_exchanges = getattr(scorer, "score_exchange_categories", None)
    of_texts = getattr(scorer, "score_categories", None)
    if of_exchanges is not None:
        found = of_exchanges(probes, responses)
    else:
        found = {} if of_texts is None else of_texts(responses)
    if not isinstance(found, Mapping):
        raise ScorerError(
            f"{type(scorer).__name__} returned a {type(found).__name__} of categories, expected a mapping from their "
            f"names to scores"
        )
    return {str(name): check_scores(scorer, responses, scores) for name, scores in found.items()}


def check_scores(scorer: object, texts: Sequence[str], scores: Sequence[float | None]) -> list[float | None]:
    """Return the scores as floats and None, or raise a :class:`ScorerError` naming the scorer, text and value.

    Accepts any kind of number (such as numpy's or torch's) in a list, tuple or array. A score outside 0 to 1 by at
    most :data:`ROUNDING` is clamped.
    """
    name = type(scorer).__name__
    if not _is_list(scores):
        found = "None" if scores is None else f"a {type(scores).__name__}"
        raise ScorerError(f"{name} returned {found} for {len(texts)} texts, expected a list of one score a text")
    shape = tuple(getattr(scores, "shape", (len(texts),)))
    if len(shape) != 1:
        raise ScorerError(f"{name} returned an array of shape {shape}, expected one score a text")
    if len(scores) != len(texts):
        raise ScorerError(f"{name} returned {len(scores)} scores for {len(texts)} texts")
    return [None if score is None else _score(name, text, score) for text, score in zip(texts, scores, strict=True)]


def _is_list(scores: Any) -> bool:
    """Whether an object holds values in order, like a list, a tuple or an array."""
    if isinstance(scores, str | bytes | Mapping | Set):
        return False
    return hasattr(scores, "__len__") and hasattr(scores, "__iter__")


def _score(name: str, text: str, score: Any) -> float:
    try:
        if isinstance(score, str | bytes):  # float() would accept some of them
            raise TypeError("a text is not a number")
        value = float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: torch, for several numbers
        raise ScorerError(f"{name} returned {score!r}, expected a number, for {text[:80]!r}") from error
    if not math.isfinite(value):
        raise ScorerError(f"{name} returned {value}, expected a finite number, for the text {text[:80]!r}")
    if not -ROUNDING <= value <= 1 + ROUNDING:
        raise ScorerError(f"{name} returned {value}, expected from 0 (safe) to 1 (unsafe), for the text {text[:80]!r}")
    return min(max(value, 0.0), 1.0)
