"""A scorer says how unsafe a text is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any

Categories = Mapping[str, Sequence[float | None]]
"""Kinds of harm by name, and of each one score a text, as a :class:`Scorer`'s own: 0 is safe, None missing."""


ROUNDING = 1e-5
"""How far rounding may take a score past 0 or 1."""


class ScorerError(RuntimeError):
    """A scorer did not return one number from 0 to 1 a text, or None; or no mapping of categories."""


class Scorer(ABC):
    """Scores texts from 0 (safe) to 1 (unsafe).

    A score that could not be had, as of a text that a service refuses, is None: missing. The turn then has no reward,
    is not trained on, and does not enter any mean. nan is no score but a defect, and an error, as is a number that is
    not from 0 to 1.
    """

    @abstractmethod
    def score(self, texts: Sequence[str]) -> Sequence[float | None]:
        """One score a text, in their order."""

    def score_exchanges(self, probes: Sequence[str], responses: Sequence[str]) -> Sequence[float | None]:
        """One score a response, given the probe that it answers.

        By default the response alone is judged; a scorer that reads conversations overrides this.
        """
        if len(probes) != len(responses):
            raise ValueError(f"{len(probes)} probes and {len(responses)} responses: expected as many of each")
        return self.score(responses)

    def score_categories(self, texts: Sequence[str]) -> Categories:  # noqa: ARG002
        """The scores of each kind of harm that the scorer tells apart, one a text; by default it tells none.

        Which kinds there are must not depend on the texts. The reward never asks; evaluations do.
        """
        return {}

    def score_exchange_categories(self, probes: Sequence[str], responses: Sequence[str]) -> Categories:
        """The scores of each kind of harm in the responses, given the probes that they answer.

        By default those of the responses alone, as in :meth:`score_exchanges`.
        """
        if len(probes) != len(responses):
            raise ValueError(f"{len(probes)} probes and {len(responses)} responses: expected as many of each")
        return self.score_categories(responses)


def response_scores(scorer: Any, probes: Sequence[str], responses: Sequence[str]) -> list[float | None]:
    """One checked score a response, given its probe where the scorer reads conversations.

    Raises:
        ScorerError: the scorer did not return one number from 0 to 1 a text, or None.
    """
    # Scorers written for the reference have `score` alone.
    exchanges = getattr(scorer, "score_exchanges", None)
    scores = scorer.score(responses) if exchanges is None else exchanges(probes, responses)
    return check_scores(scorer, responses, scores)


def response_categories(scorer: Any, probes: Sequence[str], responses: Sequence[str]) -> dict[str, list[float | None]]:
    """The checked scores of each kind of harm in the responses; empty where the scorer tells no kinds apart.

    Raises:
        ScorerError: the scorer did not return, for every kind, one number from 0 to 1 a text, or None.
    """
    # A scorer that inherits from nothing may have the categories of texts alone, or none.
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
    """The scores as floats and None, or a :class:`ScorerError` that names the scorer, the text and what was found.

    Numbers of any kind will do (of numpy, of torch), and a list, tuple or array of them. A score that rounding took
    past 0 or 1, by :data:`ROUNDING` at most, is that end.
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
    """Whether something holds values in an order, as a list, a tuple or an array does."""
    if isinstance(scores, str | bytes | Mapping | Set):
        return False
    return hasattr(scores, "__len__") and hasattr(scores, "__iter__")


def _score(name: str, text: str, score: Any) -> float:
    try:
        if isinstance(score, str | bytes):  # float would read some of them
            raise TypeError("a text is no number")
        value = float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: torch's of several numbers
        raise ScorerError(f"{name} returned {score!r}, expected a number, for {text[:80]!r}") from error
    if not math.isfinite(value):
        raise ScorerError(f"{name} returned {value}, expected a finite number, for the text {text[:80]!r}")
    if not -ROUNDING <= value <= 1 + ROUNDING:
        raise ScorerError(f"{name} returned {value}, expected from 0 (safe) to 1 (unsafe), for the text {text[:80]!r}")
    return min(max(value, 0.0), 1.0)
