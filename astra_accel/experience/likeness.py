"""How alike probes are, by the words that they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

Words = frozenset[str]
NUM_COMPARED = 128
"""Texts at most that :func:`mean_overlap` compares with one another, so that it takes some milliseconds at any size."""


def words_of(texts: Iterable[object]) -> Words:
    """The words of some texts, in lower case, each once."""
    return frozenset(word for text in texts for word in str(text).lower().split())


def overlap(one: Words, other: Words) -> float:
    """The share of the words of ``one`` that ``other`` has too. Not symmetric; without words, both are the same text.

    ``you are so rude`` has three of the four words of ``you are rude today my friend``: 0.75, and 0.5 the other way.
    """
    if not one:
        return float(not other)
    return len(one & other) / len(one)


def mean_overlap(texts: Sequence[Words]) -> float | None:
    """The mean over texts of the overlap with the most alike of the others; None for fewer than two texts.

    Of more than :data:`NUM_COMPARED` some are taken, at even distances.
    """
    count = min(len(texts), NUM_COMPARED)
    if count < 2:
        return None
    taken = [texts[place * len(texts) // count] for place in range(count)]
    return fmean(
        max(overlap(one, other) for other in taken[:place] + taken[place + 1 :]) for place, one in enumerate(taken)
    )
