"""Reads files of nodes as a report needs them.

As Python objects, the nodes of a long run take many times their size in the file. So a part keeps columns and
precomputes what charts need; rows are made only for the conversations that a page shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from astra_accel.evaluation.figures.diversity import distinct_n

Row = Mapping[str, Any]

SCORE = "response_score"
CONTEXT = "context"


@dataclass(frozen=True)
class Part:
    """The nodes of some episodes, parents before children.

    Attributes:
        step: the training step; None for an evaluation.
        table: the nodes without their contexts.
        prompts: the prompt of each episode.
        edges: the first row of each episode, and the number of rows.
        scores: the score of each node's response; None if missing.
    """

    step: int | None
    table: pa.Table
    prompts: Sequence[str]
    edges: Sequence[int]
    scores: Sequence[float | None]

    @property
    def num_episodes(self) -> int:
        """The number of episodes."""
        return len(self.prompts)

    @cached_property
    def worst(self) -> list[float | None]:
        """The highest score of each episode; None if no response has one."""
        return [
            max((score for score in self.scores[begin:end] if score is not None), default=None)
            for begin, end in pairwise(self.edges)
        ]

    @cached_property
    def distinct_pairs(self) -> float | None:
        """The number of distinct word pairs in its probes, divided by the number of all pairs."""
        return distinct_n([probe.split() for probe in self.table.column("probe").to_pylist()], 2)

    def success_share(self, threshold: float) -> float | None:
        """The share of responses whose score is known to reach the threshold; None if none has a score."""
        found = self.success_range(threshold)
        return None if found is None else found[0]

    def success_range(self, threshold: float) -> tuple[float, float] | None:
        """The share of successes among all responses if no response without a score is one, and if all are."""
        known = [score for score in self.scores if score is not None]
        if not known:
            return None
        num_successes, num_missing = sum(score >= threshold for score in known), len(self.scores) - len(known)
        return num_successes / len(self.scores), (num_successes + num_missing) / len(self.scores)

    def episode(self, number: int) -> list[Row]:
        """The nodes of an episode."""
        begin, end = self.edges[number], self.edges[number + 1]
        return self.table.slice(begin, end - begin).to_pylist()


def read_part(file: Path) -> Part:
    """Read a file of nodes."""
    with file.open("rb") as stream:  # pyarrow can't open paths that are not UTF-8
        table = pq.read_table(stream)
    episodes = table.column("episode").to_pylist()
    begins = [row for row, number in enumerate(episodes) if row == 0 or number != episodes[row - 1]]
    has_scores = SCORE in table.column_names
    return Part(
        step=table.column("step")[0].as_py() if "step" in table.column_names and episodes else None,
        table=table.drop_columns([CONTEXT]),
        prompts=table.column(CONTEXT).take(begins).to_pylist() if begins else [],
        edges=[*begins, len(episodes)] if begins else [],
        scores=table.column(SCORE).to_pylist() if has_scores else [None] * len(episodes),
    )
