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

    Attributes:
        num_episodes: the number of episodes.
        episode_N, turn_N, query_N: where each node is.
        columns: the numbers of each node by name; NaN if a node has none, and for all nodes if each is None.
        probes: the text of each probe.
        outcomes: what came of each question (:mod:`astra_accel.core.outcomes`).
    """

    num_episodes: int
    episode_N: np.ndarray
    turn_N: np.ndarray
    query_N: np.ndarray
    columns: Mapping[str, np.ndarray]
    probes: Sequence[str]
    outcomes: Sequence[str] = ()

    @classmethod
    def from_rows(cls, rows: Sequence[Row], num_episodes: int) -> Nodes:
        """Make it from one row per node, with parents before children in each episode."""
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
        return cls(num_episodes, episode_N, turn_N, query_N, columns, probes, outcomes)

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
