"""Credit: how much of the later rewards in the tree counts towards a probe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from astra_accel.algorithms.options import check_choice, check_fraction
from astra_accel.core.sampler import Graph, Node, walk
from astra_accel.core.seeding import derive_seed

KINDS = ("immediate", "mean", "max", "sampled")
CREDIT_STREAM = 2

Path = tuple[int, ...]


class Credit:
    """Computes the return of a node: its reward plus what its subtree earned, discounted per turn.

    With ``r`` the reward of a node, ``d`` the discount and ``c`` its children::

        immediate    G = r
        mean         G = r + d * mean of G(c)          the expected return of the policy that sampled the tree
        max          G = r + d * max of G(c)           the worst failure that the probe led to
        sampled      G = r + d * G(one c at random)    the return of one branch: unbiased like the mean, but noisier

    A tree of rewards, with ``d = 0.5``::

        1 ─┬─ 4          mean: 1 + 0.5 * (4 + 3) / 2 = 2.75
           └─ 2 ── 2     max: 1 + 0.5 * 4 = 3; the lower child has 2 + 0.5 * 2 = 3

    Args:
        kind: one of :data:`KINDS`.
        discount: the factor on a child's return.

    Raises:
        ValueError: the kind is unknown, the discount is not from 0 to 1, or it is not 1 with immediate rewards.
    """

    def __init__(self, kind: str = "immediate", discount: float = 1.0) -> None:
        check_choice("credit", kind, KINDS)
        check_fraction("discount", discount)
        if kind == "immediate" and discount != 1:
            raise ValueError(f"discount is {discount}, but credit 'immediate' counts no later reward; expected 1")
        self.kind = kind
        self.discount = discount

    def returns(self, graph: Graph) -> dict[Path, float | None]:
        """The return of each node by its path; None if its reward is missing.

        Raises:
            ValueError: a reward is not finite, or a branch has to be drawn and the graph has no seed.
        """
        totals = self._accumulate(self.rewards(graph), self.successors(graph))
        return {path: total for (path, _), total in zip(walk(graph), totals, strict=True)}

    def rewards(self, graph: Graph) -> list[float | None]:
        """The reward of each node in the order of ``walk``; None if missing.

        Raises:
            ValueError: a reward is not finite; the message names its path.
        """
        return [_reward(node, path) for path, node in walk(graph)]

    def siblings(self, graph: Graph) -> Iterator[list[tuple[Node, float]]]:
        """The children of the graph and of each node, in the order of ``walk``, with their returns.

        Nodes without a reward are left out.
        """
        returns = self.returns(graph)
        for path, children in [((), graph.children), *((path, node.children) for path, node in walk(graph))]:
            values = [returns[*path, index] for index in range(len(children))]
            yield [(node, value) for node, value in zip(children, values, strict=True) if value is not None]

    def successors(self, graph: Graph) -> list[tuple[int, ...]]:
        """For each node in the order of ``walk``, the indices in that order of the children that count towards it."""
        nodes = list(walk(graph))
        place = {path: index for index, (path, _) in enumerate(nodes)}
        return [tuple(place[*path, child] for child in self._shared(graph, path, node)) for path, node in nodes]

    def reduce(self, values: Sequence[float]) -> float:
        """Combine the values of the branches after a node into one number."""
        return max(values) if self.kind == "max" else fmean(values)

    def _accumulate(self, rewards: Sequence[float | None], successors: Sequence[tuple[int, ...]]) -> list[float | None]:
        """The return of each node, given its successors, which come after it in the list.

        A node without a reward has no return and does not count towards other nodes.
        """
        totals: list[float | None] = list(rewards)
        for index in reversed(range(len(rewards))):
            following = [total for successor in successors[index] if (total := totals[successor]) is not None]
            reward = rewards[index]
            if following and reward is not None:
                totals[index] = reward + self.discount * self.reduce(following)
        return totals

    def _shared(self, graph: Graph, path: Path, node: Node) -> Sequence[int]:
        if self.kind == "immediate" or not node.children:
            return ()
        if self.kind != "sampled":
            return range(len(node.children))
        seed = getattr(graph, "seed", None)
        if seed is None:
            raise ValueError("credit 'sampled' draws a branch from the seed of a graph, but this graph has none")
        return (derive_seed(seed, CREDIT_STREAM, *path) % len(node.children),)


def _reward(node: Node, path: Path) -> float | None:
    if node.reward is None:
        return None
    if not math.isfinite(node.reward):
        raise ValueError(f"the reward of the node at {path} is {node.reward}, expected a finite number")
    return float(node.reward)
