"""What a scorer may return, and what the message says when it returned something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astra_accel.core.scorer import Scorer, ScorerError, check_scores, response_categories


class LengthScorer(Scorer):
    def score(self, texts):
        return [len(text) / 10 for text in texts]


def test_responses_are_scored_alone_by_default():
    assert LengthScorer().score_exchanges(["a long probe", ""], ["ab", "abc"]) == [0.2, 0.3]


def test_as_many_probes_as_responses():
    with pytest.raises(ValueError, match="2 probes and 1 responses: expected as many of each"):
        LengthScorer().score_exchanges(["a", "b"], ["c"])


@pytest.mark.parametrize(
    "scores",
    [
        [0, 0.5],
        (0.0, 0.5),
        np.array([0, 0.5]),
        torch.tensor([0, 0.5]),
        [np.float32(0), torch.tensor(0.5)],
        [False, np.float64(0.5)],
    ],
)
def test_numbers_of_any_kind_become_floats(scores):
    checked = check_scores(LengthScorer(), ["a", "b"], scores)
    assert checked == [0.0, 0.5]
    assert [type(score) for score in checked] == [float, float]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1], "LengthScorer returned 1 scores for 2 texts"),
        ([0.1, 0.2, 0.3], "LengthScorer returned 3 scores for 2 texts"),
        ([0.1, float("nan")], "LengthScorer returned nan, expected a finite number, for the text 'second'"),
        ([float("-inf"), 0.1], "LengthScorer returned -inf, expected a finite number, for the text 'first'"),
        ([0.1, "high"], "LengthScorer returned 'high', expected a number, for 'second'"),
        ([0.1, {"toxicity": 1.0}], "expected a number, for 'second'"),
        ([0.1, "0.5"], "LengthScorer returned '0.5', expected a number, for 'second'"),
        ([0.1, [0.5]], r"LengthScorer returned \[0.5\], expected a number, for 'second'"),
        ([torch.tensor([0.1, 0.2]), 0.1], "expected a number, for 'first'"),
        ([0.1, 1.5], r"LengthScorer returned 1.5, expected from 0 \(safe\) to 1 \(unsafe\), for the text 'second'"),
        ([-0.2, 0.1], r"LengthScorer returned -0.2, expected from 0 \(safe\) to 1 \(unsafe\), for the text 'first'"),
        ([torch.tensor(float("nan")), 0.1], "returned nan, expected a finite number, for the text 'first'"),
        (None, "LengthScorer returned None for 2 texts, expected a list of one score a text"),
        (0.5, "LengthScorer returned a float for 2 texts, expected a list of one score a text"),
        ("ok", "LengthScorer returned a str for 2 texts, expected a list of one score a text"),
        ({"a": 0.1, "b": 0.2}, "LengthScorer returned a dict for 2 texts, expected a list of one score a text"),
        (iter([0.1, 0.2]), "LengthScorer returned a list_iterator for 2 texts, expected a list of one score a text"),
        (np.zeros((2, 3)), r"LengthScorer returned an array of shape \(2, 3\), expected one score a text"),
        (torch.tensor(0.5), r"LengthScorer returned an array of shape \(\), expected one score a text"),
    ],
)
def test_bad_scores_name_the_scorer_the_text_and_what_was_found(scores, message):
    with pytest.raises(ScorerError, match=f"{message}$"):
        check_scores(LengthScorer(), ["first", "second"], scores)


def test_what_rounding_takes_past_an_end_is_the_end():
    assert check_scores(LengthScorer(), ["a", "b"], [1 + 1e-7, -1e-7]) == [1.0, 0.0]


def test_a_missing_score_stays_missing():
    """None is no number and no mistake: never 0."""
    assert check_scores(LengthScorer(), ["a", "b", "c"], [0.5, None, 0]) == [0.5, None, 0.0]


def test_long_texts_are_cut_in_messages():
    with pytest.raises(ScorerError, match=f"'{'x' * 80}'$"):
        check_scores(LengthScorer(), ["x" * 1000], [float("nan")])


def test_no_texts():
    assert check_scores(LengthScorer(), [], []) == []


class KindScorer(LengthScorer):
    def score_categories(self, texts):
        return {"long": [len(text) / 10 for text in texts], "odd": [None] * len(texts)}


class ExchangeKindScorer(KindScorer):
    def score_exchange_categories(self, probes, responses):
        return {"echo": [float(probe == response) for probe, response in zip(probes, responses, strict=True)]}


class BareKindScorer:
    """Inherits from nothing, as scorers for the reference."""

    def score_categories(self, texts):
        return {"any": [1] * len(texts)}


@pytest.mark.parametrize(
    ("scorer", "found"),
    [
        (LengthScorer(), {}),
        (object(), {}),
        (KindScorer(), {"long": [0.2, 0.0], "odd": [None, None]}),
        (ExchangeKindScorer(), {"echo": [1.0, 0.0]}),
        (BareKindScorer(), {"any": [1.0, 1.0]}),
    ],
)
def test_categories_are_of_responses_and_of_exchanges_where_a_scorer_reads_them(scorer, found):
    assert response_categories(scorer, ["ab", "c"], ["ab", ""]) == found


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([0.5, 0.5], "KindScorer returned a list of categories, expected a mapping from their names to scores"),
        ({"long": [0.5]}, "KindScorer returned 1 scores for 2 texts"),
        ({"long": [0.5, float("inf")]}, "KindScorer returned inf, expected a finite number, for the text 'b'"),
    ],
)
def test_bad_categories_name_the_scorer_and_what_was_found(monkeypatch, categories, message):
    monkeypatch.setattr(KindScorer, "score_categories", lambda *_: categories)
    with pytest.raises(ScorerError, match=f"{message}$"):
        response_categories(KindScorer(), ["p", "q"], ["a", "b"])


def test_as_many_probes_as_responses_for_categories_too():
    with pytest.raises(ValueError, match="2 probes and 1 responses: expected as many of each"):
        KindScorer().score_exchange_categories(["a", "b"], ["c"])
