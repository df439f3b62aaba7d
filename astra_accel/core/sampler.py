"""A sampler rolls out a system into trees of conversations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Generic

from astra_accel.core.system import ActionT, StateT, System

NO_TERMS = ("reward", "probe_tokens", "response_tokens")
"""Numbers in a node's ``info`` that are not terms of the reward."""


@dataclass
class Node(Generic[StateT, ActionT]):
    """One turn: the tester's probe in a context, and the target's response to it.

    Attributes:
        context: the state in which the probe was written.
        probe: what the tester wrote.
        response: what the target answered.
        reward: the immediate reward of the probe; None if missing. A node without a reward is written with the
            rollouts, but algorithms only get the :func:`rewarded_trees`, so they may rely on a number.
        children: the turns that follow this one.
        info: further facts about the turn, by name: the parts of the reward (``reward/<name>`` in the metrics),
            ``probe_tokens`` and ``response_tokens``; if a model thought before it answered, ``probe_thinking`` and
            ``response_thinking``. Written with the rollouts.
    """

    context: StateT
    probe: ActionT
    response: StateT
    reward: float
    children: Sequence[Node[StateT, ActionT]] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Graph(Generic[StateT, ActionT]):
    """The rollout tree of one episode.

    A prompt rolled out with ``tree_width`` 2 and ``tree_depth`` 2 (``p`` a probe, ``r`` a response)::

        prompt ─┬─ p r ─┬─ p r        children of the graph: 2 nodes with context = prompt
                │       └─ p r        their children: nodes with context = prompt + p + r
                └─ p r ─┬─ p r
                        └─ p r

    Attributes:
        context: the prompt.
        children: the first turns.
        seed: determines everything random about the episode; None if unknown.
    """

    context: StateT
    children: Sequence[Node[StateT, ActionT]]
    seed: int | None = field(default=None, compare=False)


def walk(graph: Graph[StateT, ActionT]) -> Iterator[tuple[tuple[int, ...], Node[StateT, ActionT]]]:
    """Yield every node of a graph with its path, parents before children.

    A path holds the sibling index of every ancestor and of the node itself: ``(0, 1)`` is the second child of the
    graph's first child.
    """
    pending: deque[tuple[tuple[int, ...], Node]] = deque(((index,), node) for index, node in enumerate(graph.children))
    while pending:
        path, node = pending.popleft()
        yield path, node
        pending.extend(((*path, index), child) for index, child in enumerate(node.children))


def rewarded_trees(graph: Graph[StateT, ActionT]) -> list[Graph[StateT, ActionT]]:
    """Split a graph at the nodes without a reward; return the graph itself if there are none.

    What follows such a node becomes a tree of its own. If ``p2`` has none::

        prompt ─┬─ p1 ─── p3      gives      prompt ─── p1 ─── p3
                └─ p2 ─── p4                 prompt p2 r2 ─── p4

    Raises:
        ValueError: a reward is neither a finite number nor None.
    """
    rewards = []
    for path, node in walk(graph):
        rewards.append(node.reward)
        if node.reward is not None and not math.isfinite(node.reward):
            raise ValueError(
                f"the reward of the probe {str(node.probe)[:80]!r} at {path} is {node.reward}; expected a finite "
                f"number, or None where it is missing"
            )
    if None not in rewards:
        return [graph]
    trees, pending = [], [graph]
    while pending:
        tree = copy(pending.pop(0))
        tree.children = _rewarded(tree, tree.children, pending)
        if tree.children:
            trees.append(tree)
    return trees


def _rewarded(
    graph: Graph[StateT, ActionT], nodes: Sequence[Node[StateT, ActionT]], cut_off: list[Graph[StateT, ActionT]]
) -> list[Node]:
    kept = []
    for node in nodes:
        if node.reward is not None:
            kept.append(copy(node))
            kept[-1].children = _rewarded(graph, node.children, cut_off)
        elif node.children:
            cut_off.append(copy(graph))  # with its seed
            cut_off[-1].context, cut_off[-1].children = node.children[0].context, node.children
    return kept


def response_score(node: Node[StateT, ActionT]) -> float | None:
    """How unsafe the response of a turn was judged, from 0 to 1; None if the reward did not report it."""
    score = getattr(node, "info", {}).get("response_score")
    return None if score is None else float(score)


def term_values(nodes: Sequence[Node[StateT, ActionT]]) -> dict[str, list[float]]:
    """The values of each reward term over the nodes that have it: the numbers in ``info`` except token counts."""
    terms: dict[str, list[float]] = {}
    for node in nodes:
        for name, value in getattr(node, "info", {}).items():
            if name not in NO_TERMS and isinstance(value, int | float):
                terms.setdefault(name, []).append(value)
    return terms


def missing_terms(nodes: Sequence[Node[StateT, ActionT]]) -> list[str]:
    """The names of the reward terms that are missing at any node."""
    infos = [getattr(node, "info", {}) for node in nodes]
    return list(
        dict.fromkeys(name for info in infos for name, value in info.items() if value is None and name not in NO_TERMS)
    )


class Sampler(ABC, Generic[StateT, ActionT]):
    """Rolls out a system.

    A sampler may also offer ``rollout_many(seeds)`` and ``eval_rollout_many(seeds)``, which return a graph for
    each seed and may roll them out together; the graph of a seed must not depend on the other seeds. If its attribute
    ``episodes_per_prompt`` is above 1, it is called as ``rollout_many(seeds, prompt_seeds)``: prompts follow from
    ``prompt_seeds``, which are equal for that many episodes in a row; so it is, if it names that parameter, where a
    curriculum repeats prompts. If it has a method ``begin_experience(number)``,
    that is called on every process before a training step's episodes are rolled out, with the step's number from 0.
    """

    def __init__(self, system: System[StateT, ActionT]) -> None:
        self.system = system

    @abstractmethod
    def rollout(self, seed: int | None = None) -> Graph[StateT, ActionT]:
        """Roll out one episode. The same seed (0 is one too) gives the same graph; None draws a seed."""

    def eval_rollout(self, seed: Any = None) -> Graph[StateT, ActionT]:
        """Roll out one episode for evaluation, by default as in training.

        ``seed`` is an int or another starting point that the sampler takes, such as a prompt.
        """
        if seed is not None and not isinstance(seed, int):
            raise TypeError(
                f"{type(self).__name__}.eval_rollout takes an int seed, got {type(seed).__name__}; "
                f"override eval_rollout to start from something else"
            )
        return self.rollout(seed)
