"""Statistics of episodes as functions of how often each was drawn (see ``bootstrap``).

Dimensions: R resamples, E episodes, N nodes, D the size of an embedding, 1 a dimension of size one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from astra_accel.evaluation.figures.bootstrap import Statistic, wilson_interval


@dataclass(frozen=True)
class Ratio:
    """The sum of one number of each episode over the sum of another: if those are counts, a mean over nodes."""

    numerator_E: np.ndarray
    denominator_E: np.ndarray

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        return _divide(weights_RE @ self.numerator_E, weights_RE @ self.denominator_E)


@dataclass(frozen=True)
class Rate(Ratio):
    """The share of episodes with a property: the numerator is 1 if they have it, the denominator is 1 if they count."""

    def interval_without_spread(self, confidence: float) -> tuple[float, float]:
        """Wilson's interval, for when none or all episodes have the property, so that all resamples agree."""
        num_counted = float(self.denominator_E.sum())
        return wilson_interval(float(self.numerator_E.sum()) / num_counted, num_counted, confidence)


@dataclass(frozen=True)
class Median:
    """The median of values; of an even number, the mean of the middle two."""

    values_N: np.ndarray
    episode_N: np.ndarray

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        if len(self.values_N) == 0:
            return np.full(len(weights_RE), math.nan)
        order = np.argsort(self.values_N, kind="stable")
        sorted_N = self.values_N[order]
        counts_RN = weights_RE[:, self.episode_N[order]].cumsum(axis=1)
        half_R1 = counts_RN[:, -1:] / 2
        lower_R = sorted_N[(counts_RN >= half_R1).argmax(axis=1)]
        upper_R = sorted_N[(counts_RN > half_R1).argmax(axis=1)]
        middle_R = np.where(lower_R == upper_R, lower_R, (lower_R + upper_R) / 2)
        return np.where(half_R1[:, 0] > 0, middle_R, math.nan)


@dataclass(frozen=True)
class CosineDistance:
    """The mean of 1 - cosine over all pairs of nodes of different episodes.

    Pairs within an episode are left out: an episode drawn twice would be at distance 0 from itself.

    Args:
        sums_ED: the sum of each episode's embeddings, which have length 1.
        counts_E: the number of embeddings.
    """

    sums_ED: np.ndarray
    counts_E: np.ndarray

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        total_RD = weights_RE @ self.sums_ED
        own_E = np.sum(self.sums_ED**2, axis=1)
        squared_RE = weights_RE**2
        cosines_R = np.sum(total_RD**2, axis=1) - squared_RE @ own_E
        pairs_R = (weights_RE @ self.counts_E) ** 2 - squared_RE @ self.counts_E**2
        return np.where(pairs_R > 0, 1 - _divide(cosines_R, pairs_R), math.nan)


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two yes-or-no judges: their agreement beyond chance, relative to perfect agreement.

    ``(p_o - p_e) / (1 - p_e)``, with ``p_o`` the share of nodes on which they agree and ``p_e`` the share expected of
    independent judges with the same shares of yes (Cohen, 1960). Undefined if both always say the same.

    Args:
        both_E, first_E, second_E, counts_E: the number of each episode's nodes to which both, the first and the second
            said yes, and of all nodes.
    """

    both_E: np.ndarray
    first_E: np.ndarray
    second_E: np.ndarray
    counts_E: np.ndarray

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        num_R = weights_RE @ self.counts_E
        both_R, first_R, second_R = (
            _divide(weights_RE @ yes_E, num_R) for yes_E in (self.both_E, self.first_E, self.second_E)
        )
        observed_R = 1 - first_R - second_R + 2 * both_R
        expected_R = first_R * second_R + (1 - first_R) * (1 - second_R)
        return _divide(observed_R - expected_R, 1 - expected_R)


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of two numbers of each node; undefined if one of them is constant.

    Args:
        moments_E5: the sums over each episode's nodes of ``x, y, x^2, y^2, x y``.
        counts_E: the number of each episode's nodes.
    """

    moments_E5: np.ndarray
    counts_E: np.ndarray

    @classmethod
    def from_numbers(
        cls, first_N: np.ndarray, second_N: np.ndarray, episode_N: np.ndarray, num_episodes: int
    ) -> Correlation:
        """Make it from the numbers, centred so that little precision is lost in differences of sums."""
        x_N, y_N = (values_N - values_N.sum() / max(1, len(values_N)) for values_N in (first_N, second_N))
        moments = [x_N, y_N, x_N**2, y_N**2, x_N * y_N]
        sums = [np.bincount(episode_N, values, num_episodes) for values in moments]
        return cls(np.stack(sums, axis=1), np.bincount(episode_N, minlength=num_episodes).astype(float))

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        means_R5 = _divide(weights_RE @ self.moments_E5, (weights_RE @ self.counts_E)[:, None])
        x_R, y_R, xx_R, yy_R, xy_R = means_R5.T
        variances_2R = np.stack([xx_R - x_R**2, yy_R - y_R**2])
        # If all numbers are equal, rounding leaves a variance slightly different from 0.
        negligible_2 = _divide(1e-12 * self.moments_E5[:, 2:4].sum(axis=0), self.counts_E.sum())
        spread_R = (variances_2R > negligible_2[:, None]).all(axis=0)
        deviations_R = np.sqrt(np.where(spread_R, variances_2R.prod(axis=0), math.nan))
        return (xy_R - x_R * y_R) / deviations_R


@dataclass(frozen=True)
class Difference:
    """A figure on the second minus that on the first of two samples of the same episodes, drawn together."""

    first: Statistic
    second: Statistic

    def __call__(self, weights_RE: np.ndarray) -> np.ndarray:
        """See :data:`~astra_accel.evaluation.figures.bootstrap.Statistic`."""
        with np.errstate(invalid="ignore"):  # infinity minus infinity (never minus never)
            return self.second(weights_RE) - self.first(weights_RE)


@dataclass(frozen=True)
class RateDifference(Difference):
    """The difference of two rates of the same episodes."""

    first: Rate
    second: Rate

    def interval_without_spread(self, confidence: float) -> tuple[float, float]:
        """For when every episode differs by the same ``d`` of -1, 0 or 1: how much a few others could change it.

        With Wilson's upper end ``u`` for the share of other episodes, none of which was seen, that is ``d - u (1 + d)``
        to ``d + u (1 - d)``.
        """
        counted_E = self.first.denominator_E * self.second.denominator_E
        difference = float(self(np.ones((1, len(counted_E))))[0])
        _, others = wilson_interval(0.0, float(counted_E.sum()), confidence)
        return difference - others * (1 + difference), difference + others * (1 - difference)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient: NaN for 0 / 0, infinite for anything else over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return numerator / denominator
