"""Examples before a context: how a tester that finds nothing yet comes to its first finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_accel.config import FewShotConfiguration
from astra_accel.core.seeding import seed_sequence

FEW_SHOT_STREAM = 5


def shown_before(config: FewShotConfiguration, seed: Sequence[int]) -> str:
    """Some of the examples, none twice, in an order that follows from the seed; the separator follows each."""
    generator = np.random.Generator(np.random.PCG64(seed_sequence((*seed, FEW_SHOT_STREAM))))
    chosen = generator.permutation(len(config.examples))[: config.number]
    return _joined([config.examples[place] for place in chosen.tolist()], config.separator)


def longest(config: FewShotConfiguration) -> str:
    """The most characters that :func:`shown_before` may return."""
    return _joined(sorted(config.examples, key=len, reverse=True)[: config.number], config.separator)


def _joined(examples: Sequence[str], separator: str) -> str:
    return "".join(f"{example.strip()}{separator}" for example in examples)
