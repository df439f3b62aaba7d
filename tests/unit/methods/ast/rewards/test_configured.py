"""A configuration makes the terms that it weighs, and no other."""

from __future__ import annotations

import pytest

from astra_accel.config import RewardConfiguration
from astra_accel.methods.ast.rewards.configured import build_terms


def weights(**fields):
    return {term.name: weight for weight, term in build_terms(RewardConfiguration(**fields))}


def test_what_weighs_nothing_is_not_made():
    assert weights() == {}


def test_each_weight_makes_its_term():
    fields = {"length_weight": -0.01, "repetition_weight": -2, "self_bleu_novelty_weight": 0.5}
    assert weights(**fields) == {"length": -0.01, "repetition": -2.0, "self_bleu_novelty": 0.5}


def test_novelty_is_as_configured():
    fields = {
        "self_bleu_novelty_weight": 1,
        "embedding_novelty_weight": 2,
        "reservoir_size": 7,
        "reservoir_half_life": 4,
    }
    (_, by_words), (weight, by_meaning) = build_terms(RewardConfiguration(**fields), seed=3)
    assert (weight, by_meaning.name) == (2.0, "embedding_novelty")
    for term in (by_words, by_meaning):
        assert (term.reservoir.size, term.reservoir.seed, term.reservoir.half_life) == (7, 3, 4)


def test_the_model_of_embeddings_is_the_one_that_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"reward\.embedding_model is '{tmp_path}'"):
        build_terms(RewardConfiguration(embedding_novelty_weight=1, embedding_model=str(tmp_path)))
