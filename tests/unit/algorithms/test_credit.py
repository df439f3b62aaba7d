"""Returns on hand-written trees."""

from __future__ import annotations

import pytest

from astra_accel.algorithms.credit import CREDIT_STREAM, Credit
from astra_accel.algorithms.dpo import DPO
from astra_accel.core.sampler import Graph, Node
from astra_accel.core.seeding import derive_seed


def node(reward: float | None, *children: Node) -> Node:
    return Node("c", f"p{reward}", "r", reward, children)


def tree(seed: int | None = 7) -> Graph:
    """Rewards, with the paths of the nodes::

    1 (0) ─┬─ 4 (0, 0)
           └─ 2 (0, 1) ── 3 (0, 1, 0)
    5 (1)
    """
    return Graph("c", [node(1, node(4), node(2, node(3))), node(5)], seed)


def by_path(**values: float) -> dict[tuple[int, ...], float]:
    return {tuple(map(int, path[1:])): value for path, value in values.items()}


def test_immediate_is_the_reward():
    assert Credit().returns(tree()) == by_path(_0=1, _1=5, _00=4, _01=2, _010=3)


def test_the_mean_over_branches():
    """(0, 1): 2 + 0.5 * 3 = 3.5; (0): 1 + 0.5 * (4 + 3.5) / 2 = 2.875."""
    assert Credit("mean", 0.5).returns(tree()) == by_path(_0=2.875, _1=5, _00=4, _01=3.5, _010=3)


def test_the_best_branch():
    """(0): 1 + 0.5 * max(4, 3.5) = 3. Undiscounted the lower branch is the better one: 1 + (2 + 3) = 6."""
    assert Credit("max", 0.5).returns(tree()) == by_path(_0=3, _1=5, _00=4, _01=3.5, _010=3)
    assert Credit("max").returns(tree())[0,] == 6


def test_a_discount_of_0_is_the_reward():
    assert Credit("mean", 0).returns(tree()) == Credit().returns(tree())


def test_a_sampled_branch_follows_from_the_seed():
    """Below (0) either branch, 1 + 0.5 * 4 = 3 or 1 + 0.5 * 3.5 = 2.75, as the seed says, and as often."""
    credit = Credit("sampled", 0.5)
    drawn = [credit.returns(tree(seed))[0,] for seed in range(400)]
    chosen = [derive_seed(seed, CREDIT_STREAM, 0) % 2 for seed in range(400)]
    assert drawn == [(3, 2.75)[child] for child in chosen]
    assert 160 < sum(chosen) < 240
    assert credit.returns(tree())[0, 1] == 3.5


def test_a_sampled_branch_needs_a_seed():
    with pytest.raises(
        ValueError, match="credit 'sampled' draws a branch from the seed of a graph, but this graph has"
    ):
        Credit("sampled").returns(tree(seed=None))


def test_on_a_chain_all_are_the_discounted_sum():
    """1 + 0.5 * (2 + 0.5 * 4) = 3."""
    chain = Graph("c", [node(1, node(2, node(4)))], seed=0)
    for kind in ("mean", "max", "sampled"):
        assert Credit(kind, 0.5).returns(chain) == by_path(_0=3, _00=4, _000=4)


def test_a_missing_reward_is_no_return_and_in_nobody_elses():
    graph = Graph("c", [node(1, node(None, node(9)), node(2)), node(None)])
    expected = {(0,): 3.0, (1,): None, (0, 0): None, (0, 1): 2.0, (0, 0, 0): 9.0}
    assert Credit("mean").returns(graph) == expected
    siblings = [[value for _, value in nodes] for nodes in Credit("mean").siblings(graph)]
    assert siblings == [[3.0], [2.0], [], [9.0], [], []]


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["immediate", "mean"])
def test_a_reward_that_is_not_finite_is_an_error(reward, kind):
    with pytest.raises(ValueError, match=rf"the reward of the node at \(0, 1\) is {reward}, expected a finite number"):
        Credit(kind).returns(Graph("c", [node(1, node(2), node(reward))]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("median",), "credit is 'median', expected one of immediate, mean, max, sampled"),
        (("mean", 1.5), "discount is 1.5, expected from 0 to 1"),
        (("mean", float("nan")), "discount is nan, expected from 0 to 1"),
        (("immediate", 0.9), "discount is 0.9, but credit 'immediate' counts no later reward"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Credit(*options)


def test_pairs_go_by_returns():
    """a earns less than b at once, but leads to more: 1 + 5 against 2."""
    a, b = Node("c", "a", "r", 1, [node(5)]), Node("c", "b", "r", 2)
    graph = Graph("c", [a, b])
    assert [step.suffix_pos for step in DPO(None).flatten(graph)] == ["b"]
    assert [step.suffix_pos for step in DPO(None, credit="mean").flatten(graph)] == ["a"]
