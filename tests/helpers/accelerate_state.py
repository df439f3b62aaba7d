"""Accelerate's memory, lent to another library for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import AcceleratorState, GradientState, PartialState


@contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Accelerate remembers its first user's settings for the whole process: within, it begins anew."""
    states = [PartialState._shared_state, AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)
