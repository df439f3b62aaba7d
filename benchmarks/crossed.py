"""A mean over seeds, with an interval over seeds and prompts together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_accel.evaluation.figures.bootstrap import CONFIDENCE, NUM_RESAMPLES, Estimate, Statistic, finite_or_none


def crossed_estimate(
    testers: Sequence[Statistic],
    num_prompts: int,
    *,
    less: Statistic | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """The mean of a figure over the testers of several seeds, with its percentile interval of a crossed bootstrap.

    Every tester was asked the same prompts, so seeds and prompts are the rows and columns of one table. A resample
    draws rows and columns with replacement, each for itself: as many seeds as there are, and as many prompts, the
    same ones for every seed that was drawn. A cell counts as often as its row and its column were drawn together.
    This is the pigeonhole bootstrap (Owen, 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1(2)).
    Unlike a bootstrap of single conversations it knows that a seed, or a prompt, moves all of its cells alike. What
    is left over, the noise of a cell, it counts more than once, so that it errs on the side of caution; but of the
    variance between ``S`` seeds it sees ``(S - 1) / S``, since it draws among few. With three seeds the interval is
    a rough one.

    Args:
        testers: the figure of each seed's tester as a function of how often each prompt was drawn.
        num_prompts: of the evaluations.
        less: the same figure of the untrained tester, on the same prompts: it is taken off, on the same draws.
        num_resamples, confidence, seed: see :func:`~astra_accel.evaluation.figures.bootstrap.estimate`.

    Raises:
        ValueError: no tester, or no prompt.
    """
    if not testers or num_prompts < 1:
        raise ValueError(f"found {len(testers)} testers and {num_prompts} prompts, expected at least one of each")
    generator = np.random.default_rng(seed)
    weights_RE = _draws(generator, num_prompts, num_resamples)
    counts_RS = _draws(generator, len(testers), num_resamples)
    once = np.ones((1, num_prompts)), np.ones((1, len(testers)))
    value = float(crossed_values(testers, *once, less)[0])
    resampled_R = crossed_values(testers, weights_RE, counts_RS, less)
    if not np.isfinite(resampled_R).all():
        return Estimate(finite_or_none(value))
    if less is None and np.ptp(resampled_R) == 0 and hasattr(testers[0], "interval_without_spread"):
        # None or all of the conversations succeed: resamples can't tell, a single seed's interval can.
        return Estimate(value, *testers[0].interval_without_spread(confidence))
    low, high = np.quantile(resampled_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def crossed_values(
    testers: Sequence[Statistic], weights_RE: np.ndarray, counts_RS: np.ndarray, less: Statistic | None = None
) -> np.ndarray:
    """The mean over testers on each resample, ``[resamples]``.

    Args:
        testers, less: see :func:`crossed_estimate`.
        weights_RE: how often each prompt was drawn.
        counts_RS: how often each seed was drawn.
    """
    figures_RS = np.stack([tester(weights_RE) for tester in testers], axis=1)
    mean_R = (figures_RS * counts_RS).sum(axis=1) / counts_RS.sum(axis=1)
    return mean_R if less is None else mean_R - less(weights_RE)


def _draws(generator: np.random.Generator, size: int, num_resamples: int) -> np.ndarray:
    return generator.multinomial(size, np.full(size, 1 / size), size=num_resamples).astype(float)
