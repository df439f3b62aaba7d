"""Bounds that an evaluation must meet to count as the best, relative to the untrained tester."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from astra_accel.config import Bound

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer

FIELD = "training.best_bounds"


def check_untrained(bounds: Mapping[str, Bound], untrained: Mapping[str, float]) -> None:
    """Reject a bound on a figure whose multiples can't serve as a bound.

    Raises:
        ValueError: the evaluation of the untrained tester lacks the figure, or its value is not above 0; names it.
    """
    for name in bounds:
        if name not in untrained:
            raise ValueError(f"{FIELD} has {name!r}; the evaluator gives {', '.join(untrained)}")
        if not (untrained[name] > 0 and math.isfinite(untrained[name])):
            raise ValueError(
                f"{FIELD} has {name!r}, of which the untrained tester has {untrained[name]:g}; a bound is a multiple "
                f"of that, so expected a finite number above 0"
            )


def broken_bounds(
    bounds: Mapping[str, Bound], metrics: Mapping[str, float], untrained: Mapping[str, float]
) -> list[str]:
    """The figures of an evaluation that are out of bounds, with both values; one without a value counts as out."""
    broken = []
    for name, bound in bounds.items():
        value, before = metrics.get(name, math.nan), untrained[name]
        if math.isnan(value):
            broken.append(f"{name} has no value")
        elif bound.max is not None and value > bound.max * before:
            broken.append(f"{name} is {value:.4g}, above {bound.max:g} times the untrained tester's {before:.4g}")
        elif bound.min is not None and value < bound.min * before:
            broken.append(f"{name} is {value:.4g}, below {bound.min:g} times the untrained tester's {before:.4g}")
    return broken


def out_of_bounds(trainer: AccelTrainer, metrics: Mapping[str, float]) -> str | None:
    """Why an evaluation is out of a trainer's bounds; None if it is within them, or there are none."""
    bounds, untrained = trainer.config.best_bounds, trainer.state.untrained
    if not bounds or untrained is None:
        return None
    broken = broken_bounds(bounds, metrics, untrained)
    return f"out of {FIELD} ({'; '.join(broken)})" if broken else None
