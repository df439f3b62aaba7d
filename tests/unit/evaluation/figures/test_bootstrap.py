"""Intervals hold the true value as often as they say, and are those of scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from astra_accel.evaluation.figures.bootstrap import bca_interval, estimate, wilson_interval
from astra_accel.evaluation.figures.statistics import Median, Rate, Ratio

ONE_EACH = {"num_resamples": 500, "seed": 3}


def mean_of(values_N, episode_N, num_episodes):
    return Ratio(np.bincount(episode_N, values_N, num_episodes), np.bincount(episode_N, minlength=num_episodes))


def episodes_of_nodes(generator, num_episodes, nodes_each=4):
    """Nodes that share much of their value with those of their episode; the true mean is 0."""
    own = generator.normal(size=(num_episodes, 1)) + 0.5 * generator.normal(size=(num_episodes, nodes_each))
    return own.ravel(), np.repeat(np.arange(num_episodes), nodes_each)


def coverage(resampled_by, num_samples):
    """The share of samples of 60 episodes that have an interval around the true mean of 0."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(num_samples):
        values_N, episode_N = episodes_of_nodes(generator, 60)
        unit_N = episode_N if resampled_by == "episode" else np.arange(len(values_N))
        num_units = int(unit_N.max()) + 1
        found = estimate({"mean": mean_of(values_N, unit_N, num_units)}, num_units, num_resamples=400, seed=seed)[
            "mean"
        ]
        hits += found.low <= 0 <= found.high
    return hits / num_samples


def test_95_of_100_intervals_hold_the_true_mean():
    assert coverage("episode", 1000) == pytest.approx(0.95, abs=0.02)


def test_drawing_single_nodes_would_claim_too_much():
    """Which is why episodes are drawn: nodes alone give intervals half as wide as they should be."""
    assert coverage("node", 150) < 0.8


def test_intervals_of_a_rate_hold_it():
    """1000 samples of 50 episodes, a fifth of which succeed in truth; rates come in steps, so a little less exactly."""
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(1000):
        success_E = (generator.random(50) < 0.2).astype(float)
        found = estimate({"rate": Rate(success_E, np.ones(50))}, 50, num_resamples=400, seed=seed)["rate"]
        hits += found.low <= 0.2 <= found.high
    assert hits / 1000 == pytest.approx(0.95, abs=0.03)


def test_the_interval_is_scipys():
    """Resamples are drawn differently, so within their noise."""
    values = np.random.default_rng(2).exponential(size=40)
    ours = estimate({"mean": mean_of(values, np.arange(40), 40)}, 40, num_resamples=20_000)["mean"]
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], rel=0.01)


def test_the_equation_on_the_same_resamples_is_scipys():
    """Efron's formula by scipy's own parts, on resamples that both are given."""
    generator = np.random.default_rng(4)
    values = generator.exponential(size=25)
    resampled = generator.choice(values, size=(4000, 25)).mean(axis=1)
    left_out = np.array([np.delete(values, index).mean() for index in range(25)])
    bias = scipy.stats.norm.ppf((resampled < values.mean()).mean())
    skew = ((left_out.mean() - left_out) ** 3).sum() / 6 / ((left_out.mean() - left_out) ** 2).sum() ** 1.5
    tails = bias + scipy.stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(resampled, scipy.stats.norm.cdf(bias + tails / (1 - skew * tails)))
    assert bca_interval(values.mean(), resampled, left_out, 0.95) == pytest.approx(tuple(expected), rel=2e-3)


def test_wilsons_interval_is_scipys():
    for successes, trials in ((0, 10), (3, 10), (48, 48)):
        expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson_interval(successes / trials, trials, 0.95) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("success", [0.0, 1.0])
def test_none_of_ten_is_not_never(success):
    found = estimate({"rate": Rate(np.full(10, success), np.ones(10))}, 10, **ONE_EACH)["rate"]
    expected = scipy.stats.binomtest(int(10 * success), 10).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((success, expected.low, expected.high))
    assert found.high - found.low > 0.25


def test_a_number_that_is_the_same_in_all_episodes_has_no_spread():
    found = estimate({"mean": Ratio(np.full(5, 2.0), np.ones(5))}, 5, **ONE_EACH)["mean"]
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_the_same_seed_gives_the_same_interval_whatever_else_is_estimated():
    values = np.random.default_rng(5).random(20)
    one, other = Ratio(values, np.ones(20)), Ratio(values**2, np.ones(20))
    alone = estimate({"one": one}, 20, **ONE_EACH)["one"]
    assert estimate({"other": other, "one": one}, 20, **ONE_EACH)["one"] == alone
    assert estimate({"one": one}, 20, num_resamples=500, seed=4)["one"] != alone


def test_resamples_in_parts_are_the_same_resamples(monkeypatch):
    values = np.random.default_rng(6).random(30)
    statistics = {"mean": Ratio(values, np.ones(30)), "median": Median(values, np.arange(30))}
    whole = estimate(statistics, 30, **ONE_EACH)
    monkeypatch.setattr("astra_accel.evaluation.figures.bootstrap._WEIGHTS_AT_ONCE", 100)
    assert estimate(statistics, 30, **ONE_EACH) == whole


def test_what_is_not_defined_has_neither_value_nor_interval():
    found = estimate({"nothing": Ratio(np.zeros(3), np.zeros(3))}, 3, **ONE_EACH)["nothing"]
    assert found.as_dict() == {"value": None, "low": None, "high": None}


def test_an_end_at_infinity_is_none():
    """Questions a success, where two of eight episodes have one: many a resample has none."""
    found = estimate({"queries": Ratio(np.full(8, 3.0), np.array([1.0, 1, 0, 0, 0, 0, 0, 0]))}, 8, **ONE_EACH)
    assert found["queries"].value == 12.0
    assert 4.0 <= found["queries"].low < 12.0
    assert found["queries"].high is None


@pytest.mark.parametrize("wrong", [{"num_episodes": 0}, {"num_resamples": 0}, {"confidence": 1.0}])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}\D*{math.floor(next(iter(wrong.values())))}"):
        estimate({}, **{"num_episodes": 2, **wrong})
