"""Generalised advantage estimation along the branches of trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def advantages_on_trees(
    rewards: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    followers: Sequence[Sequence[int]],
    *,
    discount: float,
    gae_lambda: float,
    fold: Callable[[Sequence[float]], float],
) -> list[list[float]]:
    """The advantage of every action of every node.

    ``A_t = delta_t + discount * gae_lambda * A_(t+1)`` with ``delta_t = r_t + discount * V_(t+1) - V_t``: Schulman et
    al. 2015, https://arxiv.org/abs/1506.02438, equation 16. A node's last action is followed by the first ones of its
    followers, whose values and advantages are folded to one of each (the paper knows chains alone); nothing follows
    where there are none.

    A node of two actions before two nodes of one each, with discount and lambda 1, the mean, and every value 0.5::

        r  0, 1 ─┬─ 2        delta  0, 1 ─┬─ 1.5         A  1.5, 1.5 ─┬─ 1.5
                 └─ 0                     └─ -0.5                     └─ -0.5

    The second action has ``delta = 1 + 0.5 - 0.5`` and ``A = 1 + (1.5 - 0.5) / 2``.

    Args:
        rewards: of the actions of each node.
        values: of the state before each action.
        followers: for each node the places of those that come next, all behind it.
        discount: of the next action's value, for every action.
        gae_lambda: 0 trusts the values, 1 the rewards.
        fold: one number for several branches.
    """
    advantages: list[list[float]] = [[] for _ in rewards]
    # The value and the advantage at the first action of each node.
    entry: list[tuple[float, float]] = [(0.0, 0.0)] * len(rewards)
    for node in reversed(range(len(rewards))):
        behind = [entry[follower] for follower in followers[node]]
        value, advantage = (fold(each) for each in zip(*behind, strict=True)) if behind else (0.0, 0.0)
        for reward, before in zip(reversed(rewards[node]), reversed(values[node]), strict=True):
            advantage = reward + discount * value - before + discount * gae_lambda * advantage
            value = before
            advantages[node].insert(0, advantage)
        entry[node] = (value, advantage)
    return advantages
