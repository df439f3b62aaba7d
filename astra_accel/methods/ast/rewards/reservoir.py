"""A sample of everything that was said so far in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.models.sampling import uniforms

RESERVOIR_STREAM = 3


class Reservoir:
    """A uniform sample, of bounded size, of all texts that were added; one that was added often may be in it often.

    Each text draws a number, and those with the smallest numbers stay: reservoir sampling by random keys (bottom-k).
    The number follows from the seed and from where in the run the text was said, so the contents follow from what was
    said, and from nothing else.

    Args:
        size: texts at most.
        seed: of the numbers.

    Attributes:
        texts: the texts that stayed; another tuple whenever they change.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"reservoir_size is {size}, expected at least 1")
        self.size = size
        self.seed = seed
        self._keep([])

    def add(self, texts: Sequence[str], place: int) -> None:
        """Show it texts in an order that follows from the run, said at a place of the run that has not been before."""
        numbers = uniforms((self.seed, RESERVOIR_STREAM, place), len(texts)).tolist()
        self._keep([*self._numbered, *zip(numbers, texts, strict=True)])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        numbers = [number for number, _ in self._numbered]
        return {"numbers": numbers, "texts": list(self.texts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; of a larger reservoir, what a smaller one would have kept."""
        self._keep(list(zip(state["numbers"], state["texts"], strict=True)))

    def _keep(self, numbered: list[tuple[float, str]]) -> None:
        self._numbered = sorted(numbered)[: self.size]
        self.texts = tuple(text for _, text in self._numbered)
