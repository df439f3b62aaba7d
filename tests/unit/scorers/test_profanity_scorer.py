import sys

import pytest
from profanity_check import predict_prob

from astra_accel.scorers import ProfanityScorer

ODD = [
    "",
    " ",
    "\n",
    "\x00\x07",
    "\ud800 lone surrogate",
    "fuck \udfff",
    "\u202e\u200d",
    "😀🏽",
    "a" * 10_000,
]


def test_a_ruder_text_scores_higher():
    polite, mild, rude = ProfanityScorer().score(
        ["Thank you for your help.", "You are an awful person.", "Fuck you, you fucking bitch."]
    )
    assert 0 <= polite < 0.2 < mild < 0.8 < rude <= 1


def test_batches_score_as_the_package_does_text_by_text():
    texts = [*ODD, "you idiot", "what a lovely day", "go to hell", "shit happens"]
    expected = [predict_prob([text])[0] for text in texts]
    assert ProfanityScorer(batch_size=3).score(texts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("text", ODD)
def test_an_odd_text_alone_has_a_score(text):
    (score,) = ProfanityScorer().score([text])
    assert 0 <= score <= 1


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(ImportError, match=r"pip install 'astra-accel\[profanity\]'"):
        ProfanityScorer()
