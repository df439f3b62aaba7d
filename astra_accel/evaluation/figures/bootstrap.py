"""Bootstrap intervals for figures of episodes.

Nodes of an episode depend on one another, so whole episodes are drawn. A resample is how often each episode was drawn,
a row of ``weights_RE`` (R resamples, E episodes), and a :data:`Statistic` is a function of such weights: all ones give
its value on the sample, a zero among ones leaves an episode out, and two testers are compared on the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""From weights ``[resamples, episodes]`` to values ``[resamples]``; NaN or infinite where there is no value."""

Name = TypeVar("Name", bound=Hashable)

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
_WEIGHTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval around it.

    Attributes:
        value: on the sample; None where it is not defined (a median of nothing).
        low, high: the interval's ends; None where it has no end there, or a resample leaves the figure undefined.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return asdict(self)


def estimate(
    statistics: Mapping[Name, Statistic],
    num_episodes: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[Name, Estimate]:
    """Each statistic with its BCa interval, all of them on the same resamples.

    Where all resamples agree, they say nothing of how sure a figure is. A statistic may then bring an interval of its
    own, ``interval_without_spread(confidence)``; for others it is the value itself.

    Args:
        statistics: by name.
        num_episodes: of the sample.
        num_resamples: how often a sample is drawn from the sample.
        confidence: the share of samples whose interval is to hold the true value.
        seed: of the draws.

    Raises:
        ValueError: no episode, no resample, or a confidence that is not between 0 and 1.
    """
    if num_episodes < 1 or num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_episodes is {num_episodes}, num_resamples {num_resamples}, confidence {confidence}; "
            f"expected at least 1, at least 1, and a number between 0 and 1"
        )
    draws = _evaluate(statistics, _draws(num_episodes, num_resamples, seed))
    left_out = _evaluate(statistics, _each_left_out(num_episodes))
    estimates = {}
    for name, statistic in statistics.items():
        value = value_of(statistic, num_episodes)
        low, high = _interval(statistic, value, draws[name], left_out[name], confidence)
        estimates[name] = Estimate(*map(finite_or_none, (value, low, high)))
    return estimates


def value_of(statistic: Statistic, num_episodes: int) -> float:
    """A statistic of the sample itself."""
    return float(statistic(np.ones((1, num_episodes)))[0])


def bca_interval(
    value: float, resampled_R: np.ndarray, left_out_E: np.ndarray, confidence: float
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval (Efron, 1987, Better Bootstrap Confidence Intervals).

    With ``z`` the normal quantile of a tail, ``b`` that of the share of resamples below the value (ties count half) and
    ``a`` the acceleration of the jackknife, the tail's end is the quantile of the resamples at
    ``Phi(b + (b + z) / (1 - a (b + z)))``.

    ``scipy.stats.bootstrap`` gives the same, which a test holds it to. It isn't used because its quantiles lie between
    two resamples, which is nan where one is infinite, and because it draws anew for each statistic.

    Args:
        value: of the statistic on the sample.
        resampled_R: on each resample.
        left_out_E: on the sample without each episode.
        confidence: see :func:`estimate`.
    """
    normal, num_resamples = NormalDist(), len(resampled_R)
    below = (np.sum(resampled_R < value) + np.sum(resampled_R <= value)) / (2 * num_resamples)
    bias = normal.inv_cdf(min(max(below, 0.5 / num_resamples), 1 - 0.5 / num_resamples))
    deviations_E = left_out_E.mean() - left_out_E
    squares = float(np.sum(deviations_E**2))
    acceleration = float(np.sum(deviations_E**3)) / (6 * squares**1.5) if squares > 0 else 0.0
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    # Of the values themselves, none between two: some may be infinite (questions until a success that never comes).
    low, high = np.quantile(resampled_R, levels, method="inverted_cdf")
    return float(low), float(high)


def wilson_interval(share: float, num_trials: float, confidence: float) -> tuple[float, float]:
    """The score interval of a share of independent trials (Wilson, 1927), which knows that 0 of 10 is not never."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = share + z * z / (2 * num_trials)
    margin = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    scale = 1 + z * z / num_trials
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)


def finite_or_none(number: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return number if math.isfinite(number) else None


def _interval(
    statistic: Statistic, value: float, resampled_R: np.ndarray, left_out_E: np.ndarray, confidence: float
) -> tuple[float, float]:
    if np.isnan(resampled_R).any() or not np.isfinite([value, *left_out_E]).all():
        return math.nan, math.nan
    if np.ptp(resampled_R) == 0:
        own = getattr(statistic, "interval_without_spread", None)
        return (value, value) if own is None else own(confidence)
    return bca_interval(value, resampled_R, left_out_E, confidence)


def _evaluate(statistics: Mapping[Name, Statistic], parts: Iterator[np.ndarray]) -> dict[Name, np.ndarray]:
    values: dict[Name, list[np.ndarray]] = {name: [] for name in statistics}
    for weights_RE in parts:
        for name, statistic in statistics.items():
            values[name].append(statistic(weights_RE))
    return {name: np.concatenate(of_parts) for name, of_parts in values.items()}


def _draws(num_episodes: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """As many episodes as there are, drawn with replacement, for each resample: how often each of them."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_episodes, 1 / num_episodes)
    rows = max(1, _WEIGHTS_AT_ONCE // num_episodes)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        yield generator.multinomial(num_episodes, shares, size=size).astype(float)


def _each_left_out(num_episodes: int) -> Iterator[np.ndarray]:
    rows = max(1, _WEIGHTS_AT_ONCE // num_episodes)
    for start in range(0, num_episodes, rows):
        yield 1 - np.eye(min(rows, num_episodes - start), num_episodes, start)
