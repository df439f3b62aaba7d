"""The tree of an episode, and what a sampler is without any method of its own but ``rollout``."""

from __future__ import annotations

import math

import pytest

from astra_accel.core.sampler import Graph, Node, Sampler, rewarded_trees, term_values, walk


def node(name: str, *children: Node, reward: float | None = 0.0) -> Node:
    return Node(context=f"before {name}", probe=name, response="", reward=reward, children=children)


class CountingSampler(Sampler):
    def rollout(self, seed=None):
        return Graph(f"prompt {seed}", [])


def test_walk_gives_parents_before_children_and_the_path_to_each():
    """Level by level::

    0 ─┬─ 00 ─── 000
       └─ 01
    1
    2 ─── 20
    """
    graph = Graph("", [node("0", node("00", node("000")), node("01")), node("1"), node("2", node("20"))])
    found = [(path, node.probe) for path, node in walk(graph)]
    assert [probe for _, probe in found] == ["0", "1", "2", "00", "01", "20", "000"]
    assert all("".join(map(str, path)) == probe for path, probe in found)


def test_walk_of_a_graph_without_nodes():
    assert list(walk(Graph("", []))) == []


def test_a_graph_of_rewarded_nodes_is_its_own_tree():
    graph = Graph("", [node("0", node("00")), node("1")])
    (tree,) = rewarded_trees(graph)
    assert tree is graph


def test_what_follows_a_node_without_a_reward_is_a_tree_of_its_own():
    """Nodes 0, 11 and 110 have none::

    0 (none) ─┬─ 00
              └─ 01
    1 ─┬─ 10
       └─ 11 (none) ─── 110 (none) ─── 1100
    """
    inner = node("11", node("110", node("1100"), reward=None), reward=None)
    outer = node("0", node("00"), node("01"), reward=None)
    graph = Graph("start", [outer, node("1", node("10"), inner)], seed=7)
    found = [(tree.context, [(path, node.probe) for path, node in walk(tree)]) for tree in rewarded_trees(graph)]
    assert found == [
        ("start", [((0,), "1"), ((0, 0), "10")]),
        ("before 00", [((0,), "00"), ((1,), "01")]),
        ("before 1100", [((0,), "1100")]),
    ]
    # What is random about a tree (which branch is credited) follows from the seed of its episode.
    assert {tree.seed for tree in rewarded_trees(graph)} == {7}
    # The graph itself keeps all of its nodes.
    assert len(list(walk(graph))) == 8


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_an_error(reward):
    graph = Graph("", [node("fine", node("second", reward=reward))])
    with pytest.raises(ValueError, match=rf"reward of the probe 'second' at \(0, 0\) is {reward}; expected a finite"):
        rewarded_trees(graph)


def test_the_terms_of_a_reward_are_the_numbers_that_nodes_tell():
    """But for the reward itself and counts of tokens; nodes of other classes tell none."""
    told = {"reward": 1.0, "natural": -2.0, "probe_tokens": 3, "response_tokens": None, "note": "new"}
    nodes = [Node("", "", "", 1.0, info=told), Node("", "", "", 1.0, info={"natural": None, "count": 4}), object()]
    assert term_values(nodes) == {"natural": [-2.0], "count": [4]}


def test_nodes_share_no_defaults():
    first, second = Node("c", "p", "r", 0.0), Node("c", "p", "r", 0.0)
    assert list(first.children) == []
    first.info["x"] = 1
    assert second.info == {}


def test_evaluation_is_a_rollout_by_default():
    sampler = CountingSampler(system=None)
    assert sampler.eval_rollout(0).context == "prompt 0"
    assert sampler.eval_rollout().context == "prompt None"


def test_a_seed_that_is_no_int_is_refused_by_default():
    with pytest.raises(TypeError, match=r"CountingSampler\.eval_rollout takes an int seed, got str; override"):
        CountingSampler(system=None).eval_rollout("a prompt")
