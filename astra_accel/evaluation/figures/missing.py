"""Figures with missing scores, and the ends between which they lie.

A missing score is an outcome of its own: a response that a judge refuses may be the one that matters. So no episode is
dropped from a denominator, and a figure has two ends: one as if every missing score were 0 (safe), one as if each were
1 (a failure of the target). Whatever the scores were, it lies between them (worst-case bounds, Manski, 1989).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_accel.evaluation.figures.bootstrap import Estimate, Statistic, estimate
from astra_accel.evaluation.figures.statistics import Difference, Rate, RateDifference

SAFE, FAILURE = 0.0, 1.0
"""The value of a missing score at the two ends."""
LOWER, UPPER, NUM_MISSING, NUM_UNDETERMINED = "lower", "upper", "num_missing", "num_undetermined"


@dataclass(frozen=True)
class Incomplete:
    """A statistic of scores, some of which are missing. Calling it computes its ``value``.

    Attributes:
        value: reported where one number must suffice.
        num_missing: how many of the scores that it would be computed from are missing.
        lower, upper: the ends; None if unknown (a reward has no largest value).
    """

    value: Statistic
    num_missing: int
    lower: Statistic | None = None
    upper: Statistic | None = None

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        return self.value(weights_RE)

    @property
    def num_undetermined(self) -> int | None:
        """For a rate: the number of episodes decided by missing scores."""
        if not isinstance(self.lower, Rate) or not isinstance(self.upper, Rate):
            return None
        return int(np.sum(self.upper.numerator_E != self.lower.numerator_E))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """A figure's value on the second of two samples minus that on the first; its ends combine the worst cases."""
    found = _difference(_value(first), _value(second))
    if not isinstance(first, Incomplete) and not isinstance(second, Incomplete):
        return found
    num_missing = sum(one.num_missing for one in (first, second) if isinstance(one, Incomplete))
    (first_lower, first_upper), (second_lower, second_upper) = _ends(first), _ends(second)
    if first_lower is None or first_upper is None or second_lower is None or second_upper is None:
        return Incomplete(found, num_missing)
    return Incomplete(
        found, num_missing, _difference(first_upper, second_lower), _difference(first_lower, second_upper)
    )


def estimates_of(statistics: Mapping[str, Statistic], num_episodes: int, **options: Any) -> dict[str, dict[str, Any]]:
    """Each figure with its interval as a dict for JSON; if scores are missing, both ends with theirs.

    ``{"value", "low", "high"}``, and if scores are missing, ``num_missing``, ``lower`` and ``upper``, each with its own
    ``value``, ``low`` and ``high``; for a rate also ``num_undetermined``.

    Args:
        statistics: the statistics by name.
        num_episodes, options: see :func:`~astra_accel.evaluation.figures.bootstrap.estimate`.
    """
    parts: dict[tuple[str, str], Statistic] = {}
    for name, statistic in statistics.items():
        parts[name, "value"] = _value(statistic)
        if isinstance(statistic, Incomplete) and statistic.lower is not None and statistic.upper is not None:
            parts |= {(name, LOWER): statistic.lower, (name, UPPER): statistic.upper}
    found = estimate(parts, num_episodes, **options)
    return {name: _as_dict(name, statistic, found) for name, statistic in statistics.items()}


def num_missing_of(figure: Mapping[str, Any]) -> int:
    """How many of a figure's scores are missing."""
    return figure.get(NUM_MISSING, 0)


def _as_dict(name: str, statistic: Statistic, found: Mapping[tuple[str, str], Estimate]) -> dict[str, Any]:
    figure: dict[str, Any] = found[name, "value"].as_dict()
    if not isinstance(statistic, Incomplete):
        return figure
    figure[NUM_MISSING] = statistic.num_missing
    if statistic.num_undetermined is not None:
        figure[NUM_UNDETERMINED] = statistic.num_undetermined
    return figure | {end: found[name, end].as_dict() for end in (LOWER, UPPER) if (name, end) in found}


def _value(statistic: Statistic) -> Statistic:
    return statistic.value if isinstance(statistic, Incomplete) else statistic


def _ends(statistic: Statistic) -> tuple[Statistic | None, Statistic | None]:
    return (statistic.lower, statistic.upper) if isinstance(statistic, Incomplete) else (statistic, statistic)


def _difference(first: Statistic, second: Statistic) -> Difference:
    if isinstance(first, Rate) and isinstance(second, Rate):
        return RateDifference(first, second)
    return Difference(first, second)
