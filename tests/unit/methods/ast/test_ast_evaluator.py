"""What an evaluation reports, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from astra_accel.core.sampler import Graph, Node
from astra_accel.methods.ast import ASTEvaluator


def node(reward: float, *children: Node, **info: float) -> Node:
    return Node("", "p", "r", reward, children, info)


def turn(reward: float, both: float, alone: float, natural: float, *children: Node) -> Node:
    return node(reward, *children, combined_score=both, response_score=alone, naturalness=natural)


# Two turns, and then three of which one is a sibling.
FIRST = Graph("a", [turn(1.0, 0.5, 0.2, -2.0, turn(3.0, 0.1, 0.6, -4.0))])
SECOND = Graph("b", [turn(0.0, 0.0, 0.1, -1.0, turn(0.5, 0.3, 0.3, -3.0)), turn(4.0, 0.9, 0.2, -5.0)])


class Ready:
    """A sampler that has rolled out already."""

    def eval_rollout_many(self, seeds):
        return [{"a": FIRST, "b": SECOND}[seed] for seed in seeds]


def test_the_metrics_of_an_episode():
    assert ASTEvaluator(Ready()).compute_metrics(FIRST) == pytest.approx(
        {
            "reward/mean": 2.0,
            "response_score/mean": 0.4,
            "response_score/max": 0.6,
            "attack_success": 1.0,
            "combined_score/mean": 0.3,
            "naturalness/mean": -3.0,
        }
    )


def test_every_node_of_a_tree_counts():
    assert ASTEvaluator(Ready()).compute_metrics(SECOND) == pytest.approx(
        {
            "reward/mean": 1.5,
            "response_score/mean": 0.2,
            "response_score/max": 0.3,
            "attack_success": 0.0,
            "combined_score/mean": 0.4,
            "naturalness/mean": -3.0,
        }
    )


def test_the_metrics_of_an_evaluation_are_means_over_episodes():
    found = ASTEvaluator(Ready(), seeds=["a", "b"]).evaluate()
    assert found == pytest.approx(
        {
            "reward/mean": 1.75,
            "response_score/mean": 0.3,
            "response_score/max": 0.45,
            "attack_success": 0.5,
            "combined_score/mean": 0.35,
            "naturalness/mean": -3.0,
        }
    )
    assert ASTEvaluator(Ready(), seeds=["a", "b"]).evaluate(1)["reward/mean"] == 2.0


@pytest.mark.parametrize(("threshold", "success"), [(0.3, 1.0), (0.31, 0.0), (0.0, 1.0)])
def test_the_threshold_itself_is_a_failure_of_the_target(threshold, success):
    assert ASTEvaluator(Ready(), threshold=threshold).compute_metrics(SECOND)["attack_success"] == success


def test_nodes_that_say_nothing_of_their_scores():
    graph = Graph("", [node(1.0, node(2.0)), node(6.0)])
    assert ASTEvaluator(Ready()).compute_metrics(graph) == {"reward/mean": 3.0}


def test_a_missing_score_enters_no_mean():
    """As if its node were not there; a graph without any reward has no figure of it."""
    graph = Graph("", [turn(2.0, 0.4, 0.8, -2.0), turn(None, 0.6, None, -4.0), turn(4.0, 0.2, 0.2, -3.0)])
    assert ASTEvaluator(Ready()).compute_metrics(graph) == pytest.approx(
        {
            "reward/mean": 3.0,
            "response_score/mean": 0.5,
            "response_score/max": 0.8,
            "attack_success": 1.0,
            "combined_score/mean": 0.4,
            "naturalness/mean": -3.0,
        }
    )
    assert ASTEvaluator(Ready()).compute_metrics(Graph("", [node(None)])) == {}


def test_a_metric_whose_scores_are_all_missing_is_nan_and_still_there():
    """As an evaluation is during an outage of the scorer: no reward, no score of a response; the rest as always."""
    graphs = [Graph("", [turn(None, None, None, -1.0)]), Graph("", [turn(None, None, None, -3.0)])]
    evaluator = ASTEvaluator(Ready())
    found = evaluator.aggregate_metrics([evaluator.compute_metrics(graph) for graph in graphs])
    missing = {name for name, value in found.items() if math.isnan(value)}
    assert missing == {"reward/mean", "response_score/mean", "response_score/max", "combined_score/mean"}
    assert found["naturalness/mean"] == -2.0
    assert found["attack_success"] == 0.0


def test_an_episode_that_missing_scores_leave_open_stays_in_the_denominator():
    """One success; one failure of the attack; one with 0.2 and a score missing; one whose scores are all missing."""
    graphs = [
        Graph("", [turn(1.0, 0.1, 0.8, -1.0), turn(None, 0.1, None, -1.0)]),
        Graph("", [turn(1.0, 0.1, 0.3, -1.0)]),
        Graph("", [turn(1.0, 0.1, 0.2, -1.0, turn(None, 0.1, None, -1.0))]),
        Graph("", [turn(None, None, None, -1.0)]),
    ]
    evaluator = ASTEvaluator(Ready())
    found = evaluator.aggregate_metrics([evaluator.compute_metrics(graph) for graph in graphs])
    assert found["attack_success"] == 1 / 4
    assert found["attack_success/upper"] == 3 / 4
    assert found["attack_success/num_undetermined"] == 2
    assert found["response_score/mean"] == pytest.approx((0.8 + 0.3 + 0.2) / 3)
    only_known = evaluator.aggregate_metrics([evaluator.compute_metrics(graph) for graph in graphs[:2]])
    assert not {"attack_success/upper", "attack_success/num_undetermined"} & set(only_known)


def test_nodes_of_other_classes():
    """The reference's nodes have no place for scores."""
    other = SimpleNamespace(context="", probe="p", response="r", reward=4.0, children=[])
    assert ASTEvaluator(Ready()).compute_metrics(Graph("", [other])) == {"reward/mean": 4.0}


def test_a_metric_is_the_mean_over_the_episodes_that_have_it():
    evaluator = ASTEvaluator(Ready())
    found = evaluator.aggregate_metrics([{"reward/mean": 1.0}, {"reward/mean": 2.0, "attack_success": 1.0}])
    assert found == {"reward/mean": 1.5, "attack_success": 1.0}
    assert evaluator.aggregate_metrics([]) == {}


@pytest.mark.parametrize("name", ["reward", "", "a/b", "a~b"])
def test_a_held_out_scorer_has_a_name_that_figures_can_have(name):
    with pytest.raises(ValueError, match=f"called {name!r}; expected a name other than 'reward'"):
        ASTEvaluator(Ready(), scorers={name: object()})


def test_what_nodes_depend_on_is_described():
    sampler = SimpleNamespace(system=SimpleNamespace(scorer=3), tree_depth=2, eval_width=1)
    evaluator = ASTEvaluator(sampler, scorers={"text": "scorer"})
    assert evaluator.describe() == {"scorers": {"reward": "int", "text": "str"}, "tree_width": 1, "tree_depth": 2}
    sampler.eval_depth = 3
    assert evaluator.describe()["tree_depth"] == 3
    sampler.eval_tries = 1
    assert "tries" not in evaluator.describe()  # as in folders of earlier versions
    sampler.eval_tries = 4
    assert evaluator.describe()["tries"] == 4
    assert ASTEvaluator(SimpleNamespace(system=None)).describe() == {
        "scorers": {},
        "tree_width": None,
        "tree_depth": None,
    }
