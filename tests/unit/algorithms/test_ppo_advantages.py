"""Advantages on trees: by hand, and against the sum over each path that the paper defines."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from astra_accel.algorithms.credit import Credit
from astra_accel.algorithms.ppo import advantages_on_trees
from astra_accel.core.sampler import Graph, Node

TREE = [[1, 2], [3], [], [], []]
"""Followers: 0 is followed by 1 and 2, 1 by 3; 4 is by itself."""


def test_the_example_of_the_docstring():
    found = advantages_on_trees(
        [[0, 1], [2], [0]],
        [[0.5, 0.5], [0.5], [0.5]],
        [[1, 2], [], []],
        discount=1,
        gae_lambda=1,
        reduce=fmean,
    )
    assert found == [[1.5, 1.5], [1.5], [-0.5]]


def test_discount_and_lambda_by_hand():
    """One node of two actions, discount and lambda 0.5: delta 1 + 0.5 * 4 - 2 = 1 and 3 - 4 = -1; 1 + 0.25 * -1."""
    found = advantages_on_trees([[1, 3]], [[2, 4]], [[]], discount=0.5, gae_lambda=0.5, reduce=fmean)
    assert found == [[0.75, -1]]


def chain(rewards, values, discount, gae_lambda) -> float:
    """The first advantage of a chain: the sum over l of (discount * lambda)^l delta_l."""
    behind = [*values[1:], 0.0]
    deltas = [reward + discount * after - before for reward, before, after in zip(rewards, values, behind, strict=True)]
    return sum((discount * gae_lambda) ** place * delta for place, delta in enumerate(deltas))


def paths_from(node) -> list[list[int]]:
    return [[node, *path] for successor in TREE[node] for path in paths_from(successor)] or [[node]]


@pytest.mark.parametrize("lengths", [[1] * 5, [2, 3, 1, 2, 4]])
def test_the_mean_is_that_of_the_papers_advantages_over_all_branches(lengths):
    """A branch of node 0 is drawn with the same probability at each fork: 1 and 3, or 2."""
    draw = random.Random(0)
    rewards = [[draw.uniform(-1, 1) for _ in range(length)] for length in lengths]
    values = [[draw.uniform(-1, 1) for _ in range(length)] for length in lengths]
    found = advantages_on_trees(rewards, values, TREE, discount=0.9, gae_lambda=0.8, reduce=fmean)
    for node, length in enumerate(lengths):
        for place in range(length):
            branches = [
                chain(
                    rewards[node][place:] + [reward for later in path for reward in rewards[later]],
                    values[node][place:] + [value for later in path for value in values[later]],
                    0.9,
                    0.8,
                )
                for _, *path in paths_from(node)
            ]
            assert found[node][place] == pytest.approx(fmean(branches))


@pytest.mark.parametrize("kind", ["immediate", "mean", "max", "sampled"])
def test_without_values_advantages_are_returns(kind):
    nodes = [Node("c", "p", "r", 1, [Node("c", "p", "r", 2, [Node("c", "p", "r", 4)]), Node("c", "p", "r", 5)])]
    graph = Graph("c", nodes, seed=3)
    credit = Credit(kind, 1.0 if kind == "immediate" else 0.5)
    rewards = [[reward] for reward in credit.rewards(graph)]
    found = advantages_on_trees(
        rewards,
        [[0.0]] * 4,
        credit.successors(graph),
        discount=credit.discount,
        gae_lambda=1.0,
        reduce=credit.reduce,
    )
    assert [advantage for (advantage,) in found] == list(credit.returns(graph).values())


def test_a_node_without_actions_is_passed_over():
    found = advantages_on_trees(
        [[1], [], [2]], [[0], [], [0.5]], [[1], [2], []], discount=1, gae_lambda=1, reduce=fmean
    )
    assert found == [[3], [], [1.5]]
