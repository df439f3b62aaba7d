"""The tree of an episode, and what a sampler is without any method of its own but ``rollout``."""

from __future__ import annotations

import pytest

from astra_accel.core.sampler import Graph, Node, Sampler, walk


def node(name: str, *children: Node) -> Node:
    return Node(context="", probe=name, response="", reward=0.0, children=children)


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
