"""Seeds: everything random follows from the run's seed and from where in the run it happens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_sequence(numbers: Sequence[int]) -> np.random.SeedSequence:
    """NumPy's seed sequence for ints in ``[0, 2**64)``, distinct for distinct inputs.

    NumPy alone gives ``[7]`` and ``[7, 0]`` the same sequence, and so ``[2**32]`` and ``[0, 1]``.
    """
    words = [word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence([len(words), *words])


def derive_seed(*numbers: int) -> int:
    """Derive a seed in ``[0, 2**63)`` from ints in ``[0, 2**64)``; different ints give unrelated seeds."""
    return int(seed_sequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def text_seed(text: str) -> int:
    """A seed in ``[0, 2**64)`` that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


@contextmanager
def seeded(numbers: Sequence[int]) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch by ``numbers``, and restore their state afterwards."""
    seed = derive_seed(*numbers)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
