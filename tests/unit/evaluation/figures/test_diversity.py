"""Diversity of texts, by hand and against sacrebleu."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from astra_accel.evaluation.figures.diversity import distinct_n, leaders, self_bleu, tokenize

TEXTS = [
    "The cat sat on the mat, the cat sat.",
    "The cat sat on the mat.",
    "A dog doesn't sit on the mat & sleeps!",
    "the the the the",
    "Why?",
    "The cat sat on the mat.",
    "",
    "Completely different words, all of them 3,000 times.",
]


def test_self_bleu_is_sacrebleus_with_all_other_texts_as_references():
    bleu = BLEU(effective_order=True)
    expected = [
        bleu.sentence_score(text, TEXTS[:index] + TEXTS[index + 1 :]).score / 100 for index, text in enumerate(TEXTS)
    ]
    assert len(set(expected)) > 4
    assert self_bleu(tokenize(TEXTS)) == pytest.approx(np.mean(expected), abs=1e-12)


def test_random_texts_of_few_words_too():
    """Many ties of counts and lengths."""
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(list("abc"), size=generator.integers(1, 9))) for _ in range(25)]
    bleu = BLEU(effective_order=True)
    expected = [bleu.sentence_score(text, texts[:index] + texts[index + 1 :]).score for index, text in enumerate(texts)]
    assert 100 * self_bleu(tokenize(texts)) == pytest.approx(np.mean(expected), abs=1e-9)


def test_equal_texts_are_not_diverse_and_one_text_is_neither():
    assert self_bleu(tokenize(["I said what I said"] * 3)) == pytest.approx(1.0)
    assert self_bleu(tokenize(["I said"])) is None


def test_distinct_n_by_hand():
    """``a b a`` and ``a b``: 2 words of 5; the pairs ab, ba, ab, of which two differ."""
    tokens = [["a", "b", "a"], ["a", "b"]]
    assert distinct_n(tokens, 1) == pytest.approx(2 / 5)
    assert distinct_n(tokens, 2) == pytest.approx(2 / 3)
    assert distinct_n(tokens, 3) == pytest.approx(1.0)
    assert distinct_n(tokens, 4) is None


def test_leaders_stand_for_what_is_like_them():
    """Unit vectors at 0, 40, 80 and 190 degrees: cos 40 is 0.77, cos 80 is 0.17, so 40 falls to 0 and 80 leads."""
    angles = np.radians([0, 40, 80, 190])
    vectors = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert leaders(vectors, 0.7) == [0, 2, 3]
    assert leaders(vectors[[1, 0, 2, 3]], 0.7) == [0, 3]
    assert leaders(vectors, 0.1) == [0, 3]
    assert leaders(np.zeros((2, 2)), 0.7) == [0, 1]
    assert leaders(vectors[:0], 0.7) == []
