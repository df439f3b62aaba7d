"""A row for each node: what is known of it, and what scorers and the baseline say."""

from __future__ import annotations

import math

import pytest
import torch

from astra_accel.core.sampler import Graph, Node
from astra_accel.core.scorer import Scorer, ScorerError
from astra_accel.evaluation.judging import judge
from astra_accel.methods.ast import ASTSampler, HFASTSystem


class Length(Scorer):
    """A tenth of the characters; responses with their probes."""

    def score(self, texts):
        return [len(text) / 10 for text in texts]

    def score_exchanges(self, probes, responses):
        return [len(probe + response) / 10 for probe, response in zip(probes, responses, strict=True)]


class LongTexts(Scorer):
    """A thousandth of the characters."""

    def score(self, texts):
        return [len(text) / 1000 for text in texts]


class Kinds(Scorer):
    """Scores nothing, but has an opinion on kinds."""

    def score(self, texts):
        return [0.0] * len(texts)

    def score_categories(self, texts):
        return {"loud": [float(text.isupper()) for text in texts], "long": [len(text) / 10 for text in texts]}


class Bare:
    """A scorer as the reference has them."""

    def score(self, texts):
        return [0.25] * len(texts)


class Halves:
    """A system of plain strings, whose baseline gives each character of a probe probability 1/2."""

    scorer = Length()

    def get_baseline_logprobs(self, context, continuation):
        logprobs_BT = torch.zeros(len(continuation), 8)
        for row_T, probe in zip(logprobs_BT, continuation, strict=True):
            row_T[: len(probe)] = math.log(0.5)
        return logprobs_BT


TREE = Graph("c", [Node("c", "ab", "NO", 1.5, [Node("cabNO", "d", "yes", 2.5)], {"response_score": 0.3})])
OTHER = Graph("d", [Node("d", "", "me", 0.5)])


def test_rows_by_graph_parents_before_children():
    (first, second), (third,) = judge([TREE, OTHER], Halves(), {})
    assert first == {
        "episode": 0,
        "path": [0],
        "turn": 1,
        "context": "c",
        "probe": "ab",
        "response": "NO",
        "reward": 1.5,
        "response_score": 0.3,
        "probe_score": 0.2,
        "probe_perplexity": pytest.approx(2.0),
    }
    assert (second["path"], second["turn"], second["probe"], second["context"]) == ([0, 0], 2, "d", "cabNO")
    assert third["probe_perplexity"] is None


def test_scorers_that_were_held_out_have_columns_of_their_own():
    rows = [
        row for of_graph in judge([TREE, OTHER], Halves(), {"length": Length(), "bare": Bare()}) for row in of_graph
    ]
    assert [row["response_score/length"] for row in rows] == [0.4, 0.4, 0.2]
    assert [row["probe_score/length"] for row in rows] == [0.2, 0.1, 0.0]
    assert [row["response_score/bare"] for row in rows] == [0.25] * 3


def test_a_scorer_with_kinds_of_harm_says_them_of_responses():
    rows = judge([TREE], Halves(), {"kinds": Kinds()})[0]
    assert [row["category/kinds/loud"] for row in rows] == [1.0, 0.0]
    assert [row["category/kinds/long"] for row in rows] == [0.2, 0.3]


def test_kinds_of_harm_are_those_of_the_exchange_where_a_scorer_reads_it():
    class Echo(Kinds):
        def score_exchange_categories(self, probes, responses):
            return {"echo": [float(probe in response) for probe, response in zip(probes, responses, strict=True)]}

    class Judged(Halves):
        scorer = Echo()

    rows = [row for of_graph in judge([TREE, OTHER], Judged(), {"kinds": Kinds()}) for row in of_graph]
    assert [row["category/reward/echo"] for row in rows] == [0.0, 0.0, 1.0]
    assert [row["category/kinds/loud"] for row in rows] == [1.0, 0.0, 0.0]


def test_a_scorer_of_too_few_answers_is_refused():
    class Short(Scorer):
        def score(self, texts):
            return [0.5]

    with pytest.raises(ScorerError, match="Short returned 1 scores for 3 texts"):
        judge([TREE, OTHER], Halves(), {"short": Short()})

    class ShortKinds(Kinds):
        def score_categories(self, texts):
            return {"loud": [0.0]}

    with pytest.raises(ScorerError, match="ShortKinds returned 1 scores for 2 texts"):
        judge([TREE], Halves(), {"kinds": ShortKinds()})


def test_no_graph_has_no_row():
    assert judge([], Halves(), {"length": Length()}) == []


def test_perplexity_is_that_of_a_plain_forward():
    """Without a rollout's memory: transformers on the whole sequence, over the sampled tokens."""
    system = HFASTSystem("tiny", "tiny", scorer=LongTexts())
    (graph,) = ASTSampler(system, ["Good morning, all."], tree_depth=2).eval_rollout_many(["A fine day."])
    for row, node in zip(
        judge([graph], system, {})[0], (graph.children[0], graph.children[0].children[0]), strict=True
    ):
        context = [token for segment in node.context.segments for token in segment.tester_ids]
        start = system.views.tester.own_turn(node.context, 32)
        assert list(start)[-len(context) :] == context
        ids = torch.tensor([[*start, *node.probe.sampled_ids]])
        with system.tester.disable_adapter(), torch.no_grad():
            logprobs = system.tester(input_ids=ids).logits[0].log_softmax(-1)
        own = [float(logprobs[place - 1, ids[0, place]]) for place in range(len(start), ids.shape[1])]
        assert row["probe_perplexity"] == pytest.approx(math.exp(-sum(own) / len(own)), rel=1e-4)
        assert row["probe_score"] == len(node.probe.text) / 1000
