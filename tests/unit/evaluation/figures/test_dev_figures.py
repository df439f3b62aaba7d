"""Figures that an evaluation in training is asked for: those of `astra-accel evaluate`, on the same conversations."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from astra_accel import ASTEvaluator, ASTSampler, HFASTSystem
from astra_accel.config import RolloutConfiguration, SamplingConfiguration
from astra_accel.core.sampler import Graph, Node
from astra_accel.core.scorer import Scorer
from astra_accel.evaluation.figures.dev_figures import DEV_FIGURES

PROMPTS = ["Good morning.", "It rains.", "What a day it was!"]


class Even(Scorer):
    """The share of characters with an even code."""

    def score(self, texts):
        return [sum(ord(letter) % 2 == 0 for letter in text) / max(len(text), 1) for text in texts]


class Halves:
    """A system whose baseline gives each of a probe's two tokens a log-prob of minus its length, say."""

    scorer = Even()

    def get_baseline_logprobs(self, context, continuation):
        return torch.tensor([[-float(len(probe))] * 2 for probe in continuation])


def evaluator(system: object, **options: object) -> ASTEvaluator:
    return ASTEvaluator(SimpleNamespace(system=system), **options)


def conversation(*probes: str) -> Graph:
    children: list[Node] = []
    for probe in reversed(probes):
        children = [Node("", probe, "r", 1.0, children)]
    return Graph("", children)


def figures(asked: ASTEvaluator, *graphs: Graph) -> dict[str, float]:
    return asked.aggregate_metrics(asked.compute_metrics_many(graphs))


def test_they_are_those_of_an_evaluation_of_the_same_conversations() -> None:
    short = SamplingConfiguration(max_new_tokens=7)
    system = HFASTSystem("tiny", "tiny", scorer=Even(), rollout=RolloutConfiguration(tester=short, target=short))
    sampler = ASTSampler(system, PROMPTS, tree_depth=2)
    asked = ASTEvaluator(sampler, PROMPTS, figures=DEV_FIGURES, num_resamples=10)
    rows = asked.judge(sampler.eval_rollout_many(PROMPTS))
    expected = asked.measure([{**row, "episode": index} for index, of_graph in enumerate(rows) for row in of_graph])

    found = asked.evaluate()

    for name in DEV_FIGURES:
        if name != "self_bleu":
            assert found[name] == pytest.approx(expected["metrics"][name]["value"], rel=1e-5), name
    assert found["self_bleu"] + found["diversity/self_bleu"] == pytest.approx(1.0)
    assert found["probe_perplexity/median"] > 1
    plain = ASTEvaluator(sampler, PROMPTS).evaluate()
    assert {name: found[name] for name in plain} == plain
    assert set(found) - set(plain) == set(DEV_FIGURES)


def test_the_median_perplexity_is_over_all_probes_of_all_episodes() -> None:
    """Of exp(1), exp(2) in one episode and exp(4) in another the middle one, not the mean of medians."""
    asked = evaluator(Halves(), figures=["probe_perplexity/median"])

    found = figures(asked, conversation("a", "bb"), conversation("cccc"))

    assert found == {"reward/mean": 1.0, "probe_perplexity/median": pytest.approx(math.exp(2))}


def test_self_bleu_is_1_where_all_say_the_same_and_the_probes_are_all_that_counts() -> None:
    asked = evaluator(Halves(), figures=["self_bleu", "diversity/distinct_1"])

    found = figures(asked, conversation("the same five words here", "the same five words here"))

    assert found["self_bleu"] == pytest.approx(1.0)
    assert found["diversity/distinct_1"] == 0.5


def test_a_missing_score_of_a_probe_enters_no_mean() -> None:
    class Some(Scorer):
        def score(self, texts):
            return [None if text == "?" else 0.25 for text in texts]

    asked = evaluator(SimpleNamespace(scorer=Some()), figures=["probe_score/mean"])

    assert figures(asked, conversation("a", "?"))["probe_score/mean"] == 0.25
    assert math.isnan(figures(asked, conversation("?"))["probe_score/mean"])


def test_what_a_system_can_not_tell_is_left_out() -> None:
    asked = evaluator(SimpleNamespace(), figures=["probe_perplexity/median", "probe_score/mean"])

    assert figures(asked, conversation("a")) == {"reward/mean": 1.0}


def test_one_probe_alone_is_like_no_other() -> None:
    assert math.isnan(figures(evaluator(Halves(), figures=["self_bleu"]), conversation("a"))["self_bleu"])


def test_a_figure_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="no figure 'perplexity' can be asked for; expected some of probe_perplexity/"):
        evaluator(Halves(), figures=["perplexity"])
