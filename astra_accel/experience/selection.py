"""Which examples a replay keeps, and which it gives back. Pure: the same on every process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from astra_accel.config import ReplayConfiguration
from astra_accel.core.algorithm import ReplayEntry

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


DIGITS = 5
"""Decimals to which values are compared. What differs by less, as by the rounding of models, is a tie."""


@dataclass(frozen=True)
class Kept:
    """An example, the training step that collected it, what it is chosen by, and how often it was drawn."""

    step: Any
    collected: int
    entry: ReplayEntry
    words: Words
    draws: int = 0

    @property
    def value(self) -> float:
        """What it earned, without the digits that are rounding."""
        return round(self.entry.value, DIGITS)


def select(kept: Sequence[Kept], new: Sequence[Kept], config: ReplayConfiguration) -> list[Kept]:
    """What stays of the kept and the new examples, the oldest first.

    Those below ``min_fluency`` go. From the best to the worst, so do those that share more of their words than
    ``max_overlap`` with one that stays. Of what is then too much, the worst go for the priority ``return``, else the
    oldest. Of equal ones the newer is the better, of those of one training step the later: of the pairs of a chosen
    probe the one furthest apart.

    Args:
        kept: of which no two are too alike.
        new: of later training steps.
        config: says what may stay.
    """
    pool = [example for example in (*kept, *new) if _fluent(example, config.min_fluency)]
    is_new = {id(example) for example in new}
    by_rank = sorted(enumerate(pool), key=lambda placed: (-placed[1].value, -placed[1].collected, -placed[0]))
    best_first = [example for _, example in by_rank]
    if config.max_overlap is not None:
        best_first = _unlike(best_first, is_new, config.max_overlap)
    if config.priority != "return":
        best_first.sort(key=lambda example: -example.collected)
    staying = {id(example) for example in best_first[: config.size]}
    return [example for example in pool if id(example) in staying]


def _fluent(example: Kept, floor: float | None) -> bool:
    fluency = example.entry.fluency
    return floor is None or (fluency is not None and fluency >= floor)


def _unlike(best_first: Sequence[Kept], is_new: set[int], limit: float) -> list[Kept]:
    """The examples without those that are too alike a better one which stays; two old ones have been compared."""
    staying: list[Kept] = []
    for example in best_first:
        rivals = staying if id(example) in is_new else [other for other in staying if id(other) in is_new]
        if all(overlap(example.words, other.words) <= limit for other in rivals):
            staying.append(example)
    return staying


def draw(kept: Sequence[Kept], number: int, priority: str, uniforms: np.ndarray) -> list[Kept]:
    """Some of the kept examples, none twice, in the order of ``kept``.

    Each draw takes one with a probability in proportion to 1 / rank (Schaul et al. 2016,
    https://arxiv.org/abs/1511.05952, section 3.3 with alpha 1), by value or by recency; equal ones have the same rank.
    With the priority ``uniform`` all are alike. That is done at once, by Efraimidis and Spirakis 2006: a weight ``w``
    and a uniform number ``u`` give the key ``-log(u) / w``, and the smallest keys are drawn.

    Args:
        kept: to draw from.
        number: how many at most.
        priority: ``return``, ``recency`` or ``uniform``.
        uniforms: a number in [0, 1) for each.
    """
    standing = [
        example.value if priority == "return" else example.collected if priority == "recency" else 0 for example in kept
    ]
    ascending = np.sort(standing)
    # One more than there are better ones.
    ranks = len(kept) - np.searchsorted(ascending, standing, side="right") + 1
    keys = -np.log1p(-uniforms) * ranks
    drawn = np.sort(np.argsort(keys, kind="stable")[:number])
    return [kept[place] for place in drawn.tolist()]
