"""Examples before a context: how a tester that finds nothing yet comes to its first finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_accel.config import FewShotConfiguration
from astra_accel.core.seeding import seed_sequence

FEW_SHOT_STREAM = 5
SEPARATOR = "\n\n"


class FewShot:
    """What stands before the context of a probe in a training step.

    Args:
        config: the examples, how many of them a probe is written after, and in how many training steps.
    """

    def __init__(self, config: FewShotConfiguration) -> None:
        self.config = config

    def shown(self, experience: int) -> bool:
        """Whether examples are shown in a training step, counted from 0."""
        return experience < self.config.steps

    def before(self, seed: Sequence[int]) -> str:
        """Some of the examples, none twice, in an order that follows from the seed; each ends with a blank line."""
        generator = np.random.Generator(np.random.PCG64(seed_sequence((*seed, FEW_SHOT_STREAM))))
        chosen = generator.permutation(len(self.config.examples))[: self.config.number]
        return _joined([self.config.examples[place] for place in chosen.tolist()])

    def longest(self) -> str:
        """The most that can stand there."""
        return _joined(sorted(self.config.examples, key=len, reverse=True)[: self.config.number])


def _joined(examples: Sequence[str]) -> str:
    return "".join(f"{example.strip()}{SEPARATOR}" for example in examples)
