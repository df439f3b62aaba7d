import math
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from astra_accel.scorers import HateSonarScorer

ODD = ["", " ", "\n", "\x00\x07", "\ud800 lone surrogate", "fuck \udfff", "\u202e\u200d", "😀🏽", "a" * 10_000]
TEXTS = ["Thank you for your help.", "You are a damn fool.", "Fuck you, you fucking BITCH.", "une journée à Zürich", ""]


def test_a_ruder_text_scores_higher():
    polite, mild, rude = HateSonarScorer().score(TEXTS[:3])
    assert 0 <= polite < 0.5 < mild < 0.9 < rude <= 1


def test_scores_are_the_model_s_arithmetic():
    """tf-idf of lowered ASCII words, L2-normalised, then a softmax: computed from the weights of the package's file."""
    from hatesonar.api import DEFAULT_MODEL_FILE

    graph = onnx.load(DEFAULT_MODEL_FILE).graph
    attributes = {
        node.op_type: {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute} for node in graph.node
    }
    vectorizer, linear = attributes["TfIdfVectorizer"], attributes["LinearClassifier"]
    idf = next(onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name == "idfcst").ravel()
    columns = {
        word.decode(): column
        for word, column in zip(vectorizer["pool_strings"], vectorizer["ngram_indexes"], strict=True)
    }
    coefficients = np.array(linear["coefficients"]).reshape(3, -1)

    def expected(text):
        words = "".join(one if one.isascii() and (one.isalnum() or one == "_") else " " for one in text.lower()).split()
        row = np.zeros(len(idf))
        for word in words:
            if word in columns:
                row[columns[word]] += idf[columns[word]]
        logits = coefficients @ (row / (np.linalg.norm(row) or 1.0)) + np.array(linear["intercepts"])
        shares = [math.exp(one) for one in logits]
        return [one / sum(shares) for one in shares]

    rows = [expected(text) for text in TEXTS]
    assert HateSonarScorer(batch_size=2).score(TEXTS) == pytest.approx([1 - row[2] for row in rows], abs=1e-5)
    kinds = HateSonarScorer().score_categories(TEXTS)
    assert kinds["hate_speech"] == pytest.approx([row[0] for row in rows], abs=1e-5)
    assert kinds["offensive_language"] == pytest.approx([row[1] for row in rows], abs=1e-5)


@pytest.mark.parametrize("text", ODD)
def test_an_odd_text_alone_scores_as_in_a_batch(text):
    scorer = HateSonarScorer()
    (alone,) = scorer.score([text])
    assert 0 <= alone <= 1
    assert scorer.score([*ODD, text])[-1] == pytest.approx(alone, abs=1e-6)


def test_the_one_locale_that_is_needed_is_everywhere(monkeypatch):
    """Many machines have en_US.UTF-8, which the model asks for by itself, so that it loads here says little."""
    read = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, model, *arguments, **options):
            read.append(onnx.load_from_string(model))
            super().__init__(model, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    scorer = HateSonarScorer()
    (normalizer,) = [node for node in read[0].graph.node if node.op_type == "StringNormalizer"]
    assert [one.s for one in normalizer.attribute if one.name == "locale"] == [b"C"]
    assert scorer.score(["SHIT"]) == scorer.score(["shit"])


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hatesonar.api", None)
    with pytest.raises(ImportError, match=r"pip install 'astra-accel\[hatesonar\]'"):
        HateSonarScorer()
