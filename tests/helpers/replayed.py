"""The plain algorithm as one that may learn from earlier examples, and pieces of a replay."""

from __future__ import annotations

from typing import Any

from astra_accel.core.algorithm import ReplayEntry
from astra_accel.experience.selection import Kept, words_of
from tests.helpers.plain import PlainAlgorithm, PlainStep


class ReplayedAlgorithm(PlainAlgorithm):
    """Tells of an example what it earned: its margin, so there are many ties."""

    off_policy = True
    step_types = (PlainStep,)

    def replay_entry(self, step: PlainStep) -> ReplayEntry:
        return ReplayEntry(step.margin, (f"in {step.state} say {step.better}",), float(-step.better), step.margin / 2)


def kept(value: float, text: str = "", *, collected: int = 0, fluency: float | None = None, step: Any = None) -> Kept:
    """An example of one probe."""
    return Kept(text if step is None else step, collected, ReplayEntry(value, (text,), fluency), words_of([text]))
