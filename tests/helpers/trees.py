"""Trees written by hand."""

from __future__ import annotations

from astra_accel.core.sampler import Node


def node(probe: str, reward: float | None, *children: Node, context: str = "c") -> Node:
    """A turn whose response doesn't matter."""
    return Node(context, probe, "r", reward, children)
