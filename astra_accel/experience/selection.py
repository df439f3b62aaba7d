"""Chooses which examples a replay keeps and which it draws. Pure: the same on every process."""

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
"""The most texts that :func:`mean_overlap` compares, so that it takes a few milliseconds at any size."""


def words_of(texts: Iterable[object]) -> Words:
    """The set of words in some texts, in lower case."""
    return frozenset(word for text in texts for word in str(text).lower().split())


def overlap(one: Words, other: Words) -> float:
    """The fraction of the words of ``one`` that ``other`` has too; if ``one`` is empty, 1 only if both are.

    Not symmetric: ``you are so rude`` shares three of its four words with ``you are rude today my friend``: 0.75, and
    0.5 the other way round.
    """
    if not one:
        return float(not other)
    return len(one & other) / len(one)


def mean_overlap(texts: Sequence[Words]) -> float | None:
    """The mean over texts of the overlap with the most similar other text; None for fewer than two texts.

    Of more than :data:`NUM_COMPARED` texts, an evenly spaced subset is compared.
    """
    count = min(len(texts), NUM_COMPARED)
    if count < 2:
        return None
    taken = [texts[place * len(texts) // count] for place in range(count)]
    return fmean(
        max(overlap(one, other) for other in taken[:place] + taken[place + 1 :]) for place, one in enumerate(taken)
    )


DIGITS = 5
"""Decimals to which values are compared. A smaller difference, such as from models' rounding, is a tie."""


@dataclass(frozen=True)
class Kept:
    """An example, the training step that collected it, its ``ReplayEntry`` and words, and how often it was drawn."""

    step: Any
    collected: int
    entry: ReplayEntry
    words: Words
    draws: int = 0

    @property
    def value(self) -> float:
        """What it earned, rounded to :data:`DIGITS` decimals."""
        return round(self.entry.value, DIGITS)


def select(kept: Sequence[Kept], new: Sequence[Kept], config: ReplayConfiguration) -> list[Kept]:
    """Select which of the kept and the new examples stay, oldest first.

    Examples below ``min_fluency`` are dropped. Then, from best to worst, so is each that shares more than
    ``max_overlap`` of its words with one that stays. If more than ``size`` are left, the worst are dropped with the
    priority ``return``, else the oldest. Among equals the newer one is better, within a training step the later one:
    of the pairs of a chosen probe, the one furthest apart.

    Args:
        kept: earlier examples, no two of which are too similar.
        new: examples of later training steps.
        config: the configuration of the replay.
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
    """Drop examples that are too similar to a better one that stays; old ones have been compared with each other."""
    staying: list[Kept] = []
    for example in best_first:
        rivals = staying if id(example) in is_new else [other for other in staying if id(other) in is_new]
        if all(overlap(example.words, other.words) <= limit for other in rivals):
            staying.append(example)
    return staying


def draw(kept: Sequence[Kept], number: int, priority: str, uniforms: np.ndarray) -> list[Kept]:
    """Draw kept examples without replacement; return them in the order of ``kept``.

    Each draw has probabilities proportional to 1 / rank (Schaul et al. 2016, https://arxiv.org/abs/1511.05952,
    section 3.3 with alpha 1), by value or by recency; equal examples have the same rank. With the priority ``uniform``
    all are equally likely.

    Args:
        kept: the examples to draw from.
        number: the maximum number of examples.
        priority: ``return``, ``recency`` or ``uniform``.
        uniforms: a number in [0, 1) for each example.
    """
    standing = [
        example.value if priority == "return" else example.collected if priority == "recency" else 0 for example in kept
    ]
    ascending = np.sort(standing)
    # One plus the number of better ones.
    ranks = len(kept) - np.searchsorted(ascending, standing, side="right") + 1
    return [kept[place] for place in draw_places(1 / ranks, number, uniforms)]


def draw_places(weights: np.ndarray, number: int, uniforms: np.ndarray) -> list[int]:
    """Draw places without replacement, each time with probabilities proportional to their weights; in order.

    All draws are done at once, following Efraimidis and Spirakis 2006: a weight ``w`` and a uniform number ``u`` give
    the key ``-log(u) / w``, and the smallest keys are drawn.

    Args:
        weights: a positive number for each place.
        number: the maximum number of places.
        uniforms: a number in [0, 1) for each place.
    """
    keys = -np.log1p(-uniforms) / weights
    drawn: list[int] = np.sort(np.argsort(keys, kind="stable")[:number]).tolist()
    return drawn
