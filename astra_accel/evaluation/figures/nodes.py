"""The nodes of an evaluation as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from astra_accel.core.outcomes import ANSWERED

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Nodes:
    """The nodes of all episodes. N nodes, E episodes.

    Two episodes, the first with two turns and the second with one::

        episode_N   [0, 0, 1]
        turn_N      [1, 2, 1]
        query_N     [1, 2, 1]     the question's number in its episode; those of a turn come before those of the next
        try_N       [0, 0, 0]     the number of its try with the prompt

    Attributes:
        num_episodes: the number of episodes.
        episode_N, turn_N, query_N, try_N: where each node is.
        columns: the numbers of each node by name; NaN if a node has none, and for all nodes if each is None.
        probes: the text of each probe.
        outcomes: what came of each question (:mod:`astra_accel.core.outcomes`).
        goals, categories: those of each episode's prompt; None if it has none.
    """

    num_episodes: int
    episode_N: np.ndarray
    turn_N: np.ndarray
    query_N: np.ndarray
    try_N: np.ndarray
    columns: Mapping[str, np.ndarray]
    probes: Sequence[str]
    outcomes: Sequence[str] = ()
    goals: Sequence[str | None] = ()
    categories: Sequence[str | None] = ()

    @classmethod
    def from_rows(cls, rows: Sequence[Row], num_episodes: int, tree_width: int | None = None) -> Nodes:
        """Make it from one row per node, with parents before children in each episode.

        Args:
            rows: the rows.
            num_episodes: the number of episodes.
            tree_width: the number of children of a context, by which an episode's tries are told apart; None takes
                each episode as one try.
        """
        episode_N = np.array([row["episode"] for row in rows], dtype=int)
        names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value))
        # If all scores are missing, the figure is unknown, which differs from never requested.
        empty = dict.fromkeys(name for row in rows for name in row if name not in names)
        names |= {name: None for name in empty if all(row.get(name) is None for row in rows)}
        columns = {
            name: np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=float)
            for name in names
        }
        seen = [0] * num_episodes
        query_N = np.zeros(len(rows), dtype=int)
        for index, episode in enumerate(episode_N):
            seen[episode] += 1
            query_N[index] = seen[episode]
        turn_N = np.array([row["turn"] for row in rows], dtype=int)
        probes, outcomes = [row["probe"] for row in rows], [row.get("outcome") or ANSWERED for row in rows]
        first = [0 if tree_width is None or not row.get("path") else row["path"][0] for row in rows]
        try_N = np.array(first, dtype=int) // (tree_width or 1)
        of_prompts = ({row["episode"]: row.get(name) for row in rows} for name in ("goal", "category"))
        goals, categories = ([found.get(episode) for episode in range(num_episodes)] for found in of_prompts)
        return cls(num_episodes, episode_N, turn_N, query_N, try_N, columns, probes, outcomes, goals, categories)

    def grouped(self, group_E: np.ndarray, num_groups: int) -> Nodes:
        """A copy whose episodes are groups of the present ones, without goals and categories.

        Args:
            group_E: the number of each episode's group; -1 leaves the episode out.
            num_groups: the number of groups.
        """
        group_N = group_E[self.episode_N]
        kept_N = np.flatnonzero(group_N >= 0)
        places = {name: getattr(self, name)[kept_N] for name in ("turn_N", "query_N", "try_N")}
        texts = {name: [getattr(self, name)[index] for index in kept_N] for name in ("probes", "outcomes")}
        columns = {name: values_N[kept_N] for name, values_N in self.columns.items()}
        own: dict[str, Any] = {"columns": columns, "goals": (), "categories": (), **places, **texts}
        return replace(self, num_episodes=num_groups, episode_N=group_N[kept_N], **own)

    def filled(self, name: str, value: float) -> Nodes:
        """A copy with the missing values of a column replaced by a value."""
        values_N = self.columns[name]
        return replace(self, columns={**self.columns, name: np.where(np.isnan(values_N), value, values_N)})

    def sums(self, values_N: np.ndarray) -> np.ndarray:
        """The sum over the nodes of each episode, ``[episodes]``."""
        return np.bincount(self.episode_N, values_N, self.num_episodes).astype(float)

    def largest(self, values_N: np.ndarray) -> np.ndarray:
        """The largest value of each episode, ignoring NaN; ``-inf`` if there is none, ``[episodes]``."""
        largest_E = np.full(self.num_episodes, -np.inf)
        np.fmax.at(largest_E, self.episode_N, values_N)
        return largest_E

    def smallest(self, values_N: np.ndarray) -> np.ndarray:
        """The smallest value of each episode; ``inf`` if there is none, ``[episodes]``."""
        return -self.largest(-values_N)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
