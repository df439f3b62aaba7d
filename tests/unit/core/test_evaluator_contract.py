"""Which episodes an evaluation has, and how its metrics come together."""

from __future__ import annotations

import json

import pytest

from astra_accel.core.evaluator import Evaluator, eval_rollouts
from astra_accel.core.sampler import Graph, Sampler


class EchoSampler(Sampler):
    """Its graphs hold the seed; notes how often each way of rolling out was taken."""

    def __init__(self):
        super().__init__(system=None)
        self.calls = []

    def rollout(self, seed=None):
        raise AssertionError("an evaluation takes no training rollout")

    def eval_rollout(self, seed=None):
        self.calls.append(seed)
        return Graph(seed, [])


class ManySampler(EchoSampler):
    def eval_rollout_many(self, seeds):
        self.calls.append(list(seeds))
        return [Graph(seed, []) for seed in seeds]


class SumEvaluator(Evaluator):
    def compute_metrics(self, graph):
        return {"seed": graph.context}

    def aggregate_metrics(self, metrics):
        return {"sum": float(sum(metric["seed"] for metric in metrics)), "episodes": float(len(metrics))}


def test_seeds_count_from_zero():
    assert SumEvaluator(EchoSampler()).select_seeds(3) == [0, 1, 2]


def test_the_first_of_the_given_seeds():
    evaluator = SumEvaluator(EchoSampler(), seeds=(7, 5, 3))
    assert evaluator.select_seeds() == [7, 5, 3]
    assert evaluator.select_seeds(2) == [7, 5]
    assert evaluator.select_seeds(3) == [7, 5, 3]
    with pytest.raises(ValueError, match="num_episodes is 4, but there are 3 seeds"):
        evaluator.select_seeds(4)


def test_some_number_is_needed():
    with pytest.raises(ValueError, match="num_episodes is needed"):
        SumEvaluator(EchoSampler()).evaluate()


@pytest.mark.parametrize(("sampler", "calls"), [(EchoSampler, [7, 5]), (ManySampler, [[7, 5]])])
def test_each_episode_is_rolled_out_once_and_all_at_once_where_the_sampler_can(sampler, calls):
    evaluator = SumEvaluator(sampler(), seeds=[7, 5, 3])
    assert evaluator.evaluate(2) == {"sum": 12.0, "episodes": 2.0}
    assert evaluator.sampler.calls == calls


def test_eval_rollouts_keeps_the_order():
    assert [graph.context for graph in eval_rollouts(ManySampler(), ["b", "a"])] == ["b", "a"]


def test_metrics_are_written_as_json(tmp_path):
    Evaluator.write_json({"reward/mean": 0.25, "name": "é"}, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"reward/mean": 0.25, "name": "é"}
