"""Which conversations of an experience a person is shown, on the screen and by trackers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from astra_accel.config import TrainingConfiguration
from astra_accel.core.sampler import Graph, Node

MAX_CHARACTERS = 10_000
"""Of a text; the whole is in ``rollouts/``."""


def samples_are_due(config: TrainingConfiguration, step: int) -> bool:
    """Whether a training step shows any."""
    every = config.sample_steps
    return every is not None and (step == 1 or step % every == 0)


def best_branch(graph: Graph) -> Iterator[Node]:
    """The likeliest failure of an episode: turn by turn the probe of the best reward."""
    children: Sequence[Node] = graph.children
    while children:
        node = max(children, key=lambda node: -math.inf if node.reward is None else node.reward)
        yield node
        children = node.children


def sample_rows(graphs: Sequence[Graph], count: int) -> list[dict[str, Any]]:
    """A row for each turn of the best branches of the first ``count`` episodes, with texts that can be shown."""
    return [
        {
            "episode": episode,
            "turn": turn,
            "prompt": shown(graph.context),
            "probe": shown(node.probe),
            "response": shown(node.response),
            "reward": node.reward,
        }
        for episode, graph in enumerate(list(graphs)[:count])
        for turn, node in enumerate(best_branch(graph), start=1)
    ]


def shown(state: Any) -> str:
    """A prompt, probe or response as a person may see it; of a very long one, the beginning and how long it is."""
    text = str(state)
    if len(text) > MAX_CHARACTERS:
        return f"{printable(text[:MAX_CHARACTERS])}… ({len(text)} characters)"
    return printable(text)


def printable(text: str) -> str:
    """Model text that can't steer a terminal: control, format and surrogate characters as escapes."""
    return "".join(
        character
        if character == "\n" or not unicodedata.category(character).startswith("C")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
