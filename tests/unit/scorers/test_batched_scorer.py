import pytest

from astra_accel.core.scorer import ScorerError
from astra_accel.scorers.base import BatchedExchangeScorer, BatchedScorer


class LengthScorer(BatchedScorer):
    """Scores a text by its length and records each batch."""

    def __init__(self, batch_size=2):
        super().__init__(batch_size)
        self.batches = []

    def score_batch(self, texts):
        self.batches.append(list(texts))
        return [len(text) / 100 for text in texts]


class PairScorer(BatchedExchangeScorer, LengthScorer):
    def score_exchange_batch(self, pairs):
        self.batches.append(list(pairs))
        return [len(probe) / 10 + len(response) / 100 for probe, response in pairs]


class BrokenScorer(LengthScorer):
    def score_batch(self, texts):
        raise RuntimeError("out of memory")


class ConstantScorer(BatchedScorer):
    def __init__(self, answer):
        super().__init__(8)
        self.answer = answer

    def score_batch(self, texts):
        return self.answer


def test_scores_come_back_in_order_from_batches_of_similar_length():
    scorer = LengthScorer(batch_size=2)
    assert scorer.score(["aaa", "", "aaaaa", "a", "aaaa"]) == [0.03, 0.0, 0.05, 0.01, 0.04]
    assert scorer.batches == [["aaaaa", "aaaa"], ["aaa", "a"], [""]]


def test_an_equal_text_is_scored_once_a_call():
    scorer = LengthScorer(batch_size=2)
    assert scorer.score(["b", "aa", "b", "aa", "b"]) == [0.01, 0.02, 0.01, 0.02, 0.01]
    assert scorer.batches == [["aa", "b"]]
    scorer.score(["b"])
    assert scorer.batches == [["aa", "b"], ["b"]]


def test_no_text_makes_no_batch():
    scorer = PairScorer()
    assert scorer.score([]) == []
    assert scorer.score_exchanges([], []) == []
    assert scorer.batches == []


def test_a_scorer_of_texts_ignores_probes_and_scores_a_response_once():
    scorer = LengthScorer()
    assert scorer.score_exchanges(["p", "q", "r"], ["aa", "aa", "b"]) == [0.02, 0.02, 0.01]
    assert scorer.batches == [["aa", "b"]]


def test_a_scorer_of_exchanges_scores_a_pair_once():
    scorer = PairScorer(batch_size=2)
    scores = scorer.score_exchanges(["p", "qq", "p", "p"], ["a", "a", "bbb", "a"])
    assert scores == pytest.approx([0.11, 0.21, 0.13, 0.11])
    assert scorer.batches == [[("p", "bbb"), ("qq", "a")], [("p", "a")]]


@pytest.mark.parametrize("scorer", [LengthScorer(), PairScorer()])
def test_probes_and_responses_must_be_as_many(scorer):
    with pytest.raises(ValueError, match="2 probes and 1 responses"):
        scorer.score_exchanges(["p", "q"], ["a"])
    assert scorer.batches == []


@pytest.mark.parametrize("scorer", [LengthScorer(), PairScorer()])
@pytest.mark.parametrize(
    ("probes", "responses", "message"),
    [
        (["p", None], ["a", "b"], r"probes\[1\] is a NoneType"),
        (["p", "q", "r"], ["a", "b", 3], r"responses\[2\] is a int"),
        ("pq", ["a", "b"], "probes is one string"),
    ],
)
def test_what_is_not_a_text_is_named_by_position(scorer, probes, responses, message):
    with pytest.raises(TypeError, match=message):
        scorer.score_exchanges(probes, responses)


def test_score_names_a_bad_text_by_position():
    with pytest.raises(TypeError, match=r"texts\[1\] is a bytes"):
        LengthScorer().score(["a", b"b"])
    with pytest.raises(TypeError, match="texts is one string"):
        LengthScorer().score("hello")


def test_an_error_of_a_batch_names_the_scorer_and_the_first_text():
    with pytest.raises(ScorerError, match="BrokenScorer failed on 2 texts, the first 'longest': out of") as info:
        BrokenScorer().score(["a", "longest"])
    assert isinstance(info.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5], "ConstantScorer returned 1 scores for 2 texts"),
        ([0.5, float("nan")], "ConstantScorer returned nan"),
        ([0.5, "high"], "ConstantScorer returned 'high'"),
    ],
)
def test_an_answer_that_is_not_one_number_a_text_is_refused(answer, message):
    with pytest.raises(ScorerError, match=message):
        ConstantScorer(answer).score(["a", "b"])


def test_a_missing_score_is_missing_wherever_its_text_stands():
    assert ConstantScorer([0.5, None]).score(["b", "aa", "b"]) == [None, 0.5, None]


def test_a_batch_holds_at_least_one_text():
    with pytest.raises(ValueError, match="batch_size is 0"):
        LengthScorer(batch_size=0)


class KindScorer(LengthScorer):
    """Tells long texts from short ones."""

    def score_categories(self, texts):
        return self._categories_of_distinct([(text,) for text in texts], self.kinds)

    def kinds(self, batch):
        self.batches.append([text for (text,) in batch])
        return {
            "long": [float(len(text) > 2) for (text,) in batch],
            "short": [float(len(text) < 2) for (text,) in batch],
        }


def test_categories_are_of_distinct_texts_in_batches():
    scorer = KindScorer(batch_size=2)
    found = scorer.score_categories(["a", "bbb", "a", "cc"])
    assert found == {"long": [0.0, 1.0, 0.0, 0.0], "short": [1.0, 0.0, 1.0, 0.0]}
    assert scorer.batches == [["bbb", "cc"], ["a"]]
    assert scorer.score_categories([]) == {}


def test_a_category_of_too_few_scores_is_refused(monkeypatch):
    monkeypatch.setattr(KindScorer, "kinds", lambda *_: {"long": [0.5]})
    with pytest.raises(ScorerError, match="KindScorer returned 1 scores for 2 texts"):
        KindScorer().score_categories(["a", "b"])
