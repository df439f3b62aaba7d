"""Rows of turns as parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from astra_accel.core.sampler import Graph, walk
from astra_accel.files.text import valid_text


def rollout_rows(graphs: Sequence[Graph]) -> Iterator[dict[str, Any]]:
    """One row per node: episode, path (child indices from the root), turn, texts, reward and what else is known."""
    for episode, graph in enumerate(graphs):
        for path, node in walk(graph):
            info = {name: value for name, value in getattr(node, "info", {}).items() if name != "reward"}
            yield {
                "episode": episode,
                "path": list(path),
                "turn": len(path),
                "context": valid_text(str(node.context)),
                "probe": valid_text(str(node.probe)),
                "response": valid_text(str(node.response)),
                "reward": None if node.reward is None else float(node.reward),
                **{name: valid_text(value) if isinstance(value, str) else value for name, value in info.items()},
            }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a parquet file, completely or not at all; a column missing from a row becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    names = dict.fromkeys(name for row in rows for name in row)  # pyarrow would use only the first row's
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    pq.write_table(pa.table({name: _typed(column) for name, column in columns.items()}), temporary)
    os.replace(temporary, path)


def _typed(column: pa.Array) -> pa.Array:
    """A column without values gets the type of numbers, as in other steps: all scores of this one were missing."""
    return column.cast(pa.float64()) if pa.types.is_null(column.type) else column
