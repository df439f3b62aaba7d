"""Bootstrap intervals for figures of episodes.

Nodes of an episode depend on one another, so whole episodes are drawn. A resample is given by how often each episode
was drawn, a row of ``weights_RE`` (R resamples, E episodes), and a :data:`Statistic` is a function of such weights: all
ones give its value on the sample, a zero among ones leaves an episode out, and two testers are compared on the same
draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps weights ``[resamples, episodes]`` to values ``[resamples]``; NaN or infinite if there is no value."""

Name = TypeVar("Name", bound=Hashable)

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
_WEIGHTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval around it.

    Attributes:
        value: the value on the sample; None if undefined (a median of nothing).
        low, high: the interval's ends; None if it is unbounded there, or the figure is undefined on a resample.
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
    """Each statistic with its BCa interval, all on the same resamples.

    If all resamples agree, they say nothing about a figure's uncertainty. A statistic may then provide its own
    interval, ``interval_without_spread(confidence)``; for others the interval is the value itself.

    Args:
        statistics: the statistics by name.
        num_episodes: the number of episodes in the sample.
        num_resamples: how often a sample is drawn from the sample.
        confidence: the share of samples whose interval should contain the true value.
        seed: the seed of the draws.

    Raises:
        ValueError: there is no episode or no resample, or the confidence is not between 0 and 1.
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
    """The value of a statistic on the sample itself."""
    return float(statistic(np.ones((1, num_episodes)))[0])


def bca_interval(
    value: float, resampled_R: np.ndarray, left_out_E: np.ndarray, confidence: float
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval (Efron, 1987, Better Bootstrap Confidence Intervals).

    With ``z`` the normal quantile of a tail, ``b`` that of the share of resamples below the value (ties count half) and
    ``a`` the acceleration of the jackknife, the tail's end is the quantile of the resamples at
    ``Phi(b + (b + z) / (1 - a (b + z)))``.

    ``scipy.stats.bootstrap`` gives the same interval, which a test checks. It isn't used because its quantiles
    interpolate between two resamples, which gives nan if one is infinite, and because it draws separately for each
    statistic.

    Args:
        value: the statistic on the sample.
        resampled_R: the statistic on each resample.
        left_out_E: the statistic on the sample without each episode.
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
    # No interpolation between values: some may be infinite (questions until a success that never comes).
    low, high = np.quantile(resampled_R, levels, method="inverted_cdf")
    return float(low), float(high)


def wilson_interval(share: float, num_trials: float, confidence: float) -> tuple[float, float]:
    """The score interval of a share of independent trials (Wilson, 1927), where 0 of 10 does not mean never."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = share + z * z / (2 * num_trials)
    margin = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2))
    scale = 1 + z * z / num_trials
    return max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)


def finite_or_none(number: float) -> float | None:
    """The number, or None if JSON can't represent it."""
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
    """How often each episode is drawn in each resample, drawing as many as there are with replacement."""
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
