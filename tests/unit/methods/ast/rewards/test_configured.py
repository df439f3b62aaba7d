"""A configuration makes the terms that it weighs, and no other."""

from __future__ import annotations

from astra_accel.config import RewardConfiguration
from astra_accel.methods.ast.rewards.configured import build_terms


def weights(**fields):
    return {term.name: weight for weight, term in build_terms(RewardConfiguration(**fields))}


def test_what_weighs_nothing_is_not_made():
    assert weights() == {}


def test_each_weight_makes_its_term():
    fields = {"length_weight": -0.01, "repetition_weight": -2, "self_bleu_novelty_weight": 0.5}
    assert weights(**fields) == {"length": -0.01, "repetition": -2.0, "self_bleu_novelty": 0.5}


def test_the_reservoir_is_as_configured():
    ((_, term),) = build_terms(RewardConfiguration(self_bleu_novelty_weight=1, reservoir_size=7), seed=3)
    assert (term.reservoir.size, term.reservoir.seed) == (7, 3)
