"""A sample of what was said so far in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
