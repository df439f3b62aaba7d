"""Each statistic on weights is what it is on a sample in which episodes are repeated that often."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from astra_accel.evaluation.figures.bootstrap import estimate
from astra_accel.evaluation.figures.statistics import (
    Correlation,
    CosineDistance,
    Difference,
    Kappa,
    Median,
    Rate,
    RateDifference,
    Ratio,
)

EPISODE_N = np.array([0, 0, 1, 2, 2, 2])
FIRST_N = np.array([0.1, 0.9, 0.4, 0.7, 0.2, 0.6])
SECOND_N = np.array([0.3, 0.8, 0.6, 0.9, 0.1, 0.2])
WEIGHTS = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0], [1, 0, 0], [0, 1, 2]])


def repeated(values_N, weights_E):
    """The nodes' values, those of an episode as often as it was drawn."""
    return np.repeat(values_N, weights_E[EPISODE_N].astype(int))


def sums(values_N):
    return np.bincount(EPISODE_N, values_N, 3)


def test_a_ratio_of_sums_is_the_mean_over_nodes():
    found = Ratio(sums(FIRST_N), sums(np.ones(6)))(WEIGHTS)
    assert found == pytest.approx([repeated(FIRST_N, weights).mean() for weights in WEIGHTS])


def test_the_median():
    found = Median(FIRST_N, EPISODE_N)(WEIGHTS)
    assert found == pytest.approx([np.median(repeated(FIRST_N, weights)) for weights in WEIGHTS])


def test_the_median_of_numbers_that_may_be_infinite():
    never = np.array([1.0, math.inf, 3.0, math.inf])
    found = Median(never, np.arange(4))(np.array([[1.0, 1, 1, 1], [2, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]]))
    assert found.tolist() == [math.inf, 2.0, 2.0, math.inf]


def test_the_median_of_nothing_is_nan():
    assert np.isnan(Median(np.array([]), np.array([], dtype=int))(WEIGHTS)).all()
    assert np.isnan(Median(np.array([1.0]), np.array([1]))(np.array([[1.0, 0, 0]]))).all()


def test_cosine_distance_is_the_mean_over_pairs_of_different_episodes():
    vectors_ND = np.random.default_rng(0).normal(size=(6, 3))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    sums_ED = np.stack([sums(column) for column in vectors_ND.T], axis=1)
    found = CosineDistance(sums_ED, sums(np.ones(6)))(WEIGHTS)
    for value, weights_E in zip(found, WEIGHTS, strict=True):
        distances = [
            (1 - vectors_ND[one] @ vectors_ND[other], weights_E[EPISODE_N[one]] * weights_E[EPISODE_N[other]])
            for one, other in itertools.combinations(range(6), 2)
            if EPISODE_N[one] != EPISODE_N[other]
        ]
        total = sum(weight for _, weight in distances)
        if total == 0:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(sum(distance * weight for distance, weight in distances) / total)


def test_kappa_is_sklearns():
    first_N, second_N = FIRST_N >= 0.5, SECOND_N >= 0.5
    found = Kappa(sums(first_N & second_N), sums(first_N), sums(second_N), sums(np.ones(6)))(WEIGHTS)
    for value, weights in zip(found, WEIGHTS, strict=True):
        yes = repeated(first_N, weights), repeated(second_N, weights)
        if len(set(yes[0])) == len(set(yes[1])) == 1 and yes[0][0] == yes[1][0]:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(cohen_kappa_score(*yes))


def test_correlation_is_numpys():
    found = Correlation.from_numbers(FIRST_N, SECOND_N, EPISODE_N, 3)(WEIGHTS)
    for value, weights in zip(found, WEIGHTS, strict=True):
        values = repeated(FIRST_N, weights), repeated(SECOND_N, weights)
        if np.ptp(values[0]) > 0:
            assert value == pytest.approx(np.corrcoef(*values)[0, 1])
        else:
            assert math.isnan(value)


def test_a_difference_is_of_the_second_to_the_first():
    one, other = Ratio(np.array([1.0, 2, 3]), np.ones(3)), Ratio(np.array([2.0, 2, 2]), np.ones(3))
    assert Difference(one, other)(WEIGHTS) == pytest.approx(other(WEIGHTS) - one(WEIGHTS))


def test_paired_draws_know_that_episodes_go_together():
    """The second sample is the first and 0.1 more in each episode: there is no doubt of the difference."""
    values = np.random.default_rng(1).random(30)
    one, other = Ratio(values, np.ones(30)), Ratio(values + 0.1, np.ones(30))
    found = estimate({"difference": Difference(one, other), "one": one}, 30, num_resamples=300)
    assert found["difference"].high - found["difference"].low < 1e-9
    assert found["one"].high - found["one"].low > 0.1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 0, (0.0, -0.2775, 0.2775)),
        (1, 1, (0.0, -0.2775, 0.2775)),
        (0, 1, (1.0, 1 - 2 * 0.2775, 1.0)),
        (1, 0, (-1.0, -1.0, -1 + 2 * 0.2775)),
    ],
)
def test_where_ten_prompts_agree_others_may_not(first, second, expected):
    """Wilson's upper end of 0 of 10 is 0.2775."""
    rates = [Rate(np.full(10, float(success)), np.ones(10)) for success in (first, second)]
    found = estimate({"difference": RateDifference(*rates)}, 10, num_resamples=100)["difference"]
    assert (found.value, found.low, found.high) == pytest.approx(expected, abs=1e-4)
