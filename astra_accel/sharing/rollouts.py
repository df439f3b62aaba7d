"""Exports a run's conversations as a data set that ``datasets.load_dataset(folder)`` reads.

::

    README.md                        the data set's card, which says which files are which configuration
    data/rollouts-00000.parquet      every turn of training, in order of training steps
    data/evaluation-00000.parquet    every turn on held-out prompts, where the run was evaluated

One row per turn; ``node`` and ``parent`` describe the tree. Files are read and written in batches of rows, so that a
run of any length fits in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from astra_accel.evaluation.folder import NODES, find_evaluation
from astra_accel.files.atomic import complete_or_absent
from astra_accel.files.run_folder import ROLLOUTS

DATA = "data"
ROWS_AT_ONCE = 8192
ROWS_A_FILE = 200_000
FIELDS = {
    "step": pa.int64(),
    "episode": pa.int64(),
    "turn": pa.int64(),
    "node": pa.string(),
    "parent": pa.string(),
    "context": pa.string(),
    "probe": pa.string(),
    "response": pa.string(),
    "reward": pa.float64(),
}
"""The columns of every data set, in order; after them come the reward's terms and what else is known of a turn."""
COUNTS = ("probe_tokens", "response_tokens")


@dataclass(frozen=True)
class Split:
    """Files of one schema.

    Attributes:
        name: the name of the configuration, and the prefix of its files' names.
        split: its name in ``datasets``.
        schema: its columns.
        num_rows: the number of turns.
        num_missing: the number of turns whose reward is missing.
    """

    name: str
    split: str
    schema: pa.Schema
    num_rows: int
    num_missing: int


def export_rollouts(run: str | Path, folder: str | Path, *, jsonl: bool = False) -> list[Split]:
    """Write the turns of a run as parquet files with one flat schema (:data:`FIELDS`), without a card.

    ``node`` names a turn within the data set (``12/3/0.1``: training step 12, episode 3, the second turn after the
    first), ``parent`` the one before it, null at the first turn. A reward or term that is missing is null.

    Args:
        run: the folder of a run, or of an evaluation.
        folder: the folder to write, new or empty. It is complete or absent.
        jsonl: whether to write JSON lines instead of parquet.

    Raises:
        FileNotFoundError: the run has no rollouts.
        SharingError: the folder is not empty.
    """
    evaluation = find_evaluation(run)
    sources = {
        "rollouts": ("train", sorted((Path(run) / ROLLOUTS).glob("step-*.parquet"))),
        "evaluation": ("test", sorted((evaluation / NODES).glob("part-*.parquet"))),
    }
    found = {name: source for name, source in sources.items() if source[1]}
    if not found:
        raise FileNotFoundError(
            f"{run} has neither {ROLLOUTS}/step-*.parquet nor an evaluation's {NODES}/part-*.parquet; expected the "
            f"folder of a run"
        )
    with complete_or_absent(Path(folder)) as temporary:
        return [_export(name, split, files, temporary / DATA, jsonl) for name, (split, files) in found.items()]


def flat_schema(files: Sequence[Path]) -> pa.Schema:
    """The columns of all files combined: numbers, texts, and JSON for anything else."""
    types: dict[str, list[pa.DataType]] = {}
    for file in files:
        for column in pq.read_schema(file):
            types.setdefault(column.name, []).append(column.type)
    fields = {name: kind for name, kind in FIELDS.items() if name in (*types, "node", "parent")}
    further = {name: _flat_type(name, of_name) for name, of_name in types.items() if name not in (*FIELDS, "path")}
    return pa.schema(list((fields | further).items()))


def _flat_type(name: str, types: Sequence[pa.DataType]) -> pa.DataType:
    if name in COUNTS:
        return pa.int64()
    if all(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) for kind in types):
        return pa.float64()
    return pa.bool_() if all(pa.types.is_boolean(kind) for kind in types) else pa.string()


def _export(name: str, split: str, files: Sequence[Path], folder: Path, jsonl: bool) -> Split:
    schema = flat_schema(files)
    num_rows = num_missing = 0
    folder.mkdir(exist_ok=True)
    writer = _Writer(folder, name, schema, jsonl)
    try:
        for table in _tables(files, schema):
            writer.write(table)
            num_rows += table.num_rows
            num_missing += table["reward"].null_count
        if num_rows == 0:
            writer.write(schema.empty_table())
    finally:
        writer.close()
    return Split(name, split, schema, num_rows, num_missing)


def _tables(files: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(ROWS_AT_ONCE):
                yield _flat(pa.Table.from_batches([batch]), schema)


def _flat(table: pa.Table, schema: pa.Schema) -> pa.Table:
    places = zip(*(table[name].to_pylist() for name in ("episode", "path")), strict=True)
    steps = table["step"].to_pylist() if "step" in table.column_names else [None] * table.num_rows
    columns: dict[str, Any] = {"node": [], "parent": []}
    for step, (episode, path) in zip(steps, places, strict=True):
        before = f"{episode}/" if step is None else f"{step}/{episode}/"
        columns["node"].append(before + ".".join(map(str, path)))
        columns["parent"].append(before + ".".join(map(str, path[:-1])) if path[1:] else None)
    for name in table.column_names:
        columns[name] = table[name]
    arrays = [_cast(columns.get(column.name, [None] * table.num_rows), column.type) for column in schema]
    return pa.table(arrays, schema=schema)


def _cast(values: Any, kind: pa.DataType) -> Any:
    """The values as a column of a type; values that are neither numbers nor texts become JSON."""
    if isinstance(values, list):
        return pa.array(values, kind)
    if kind != pa.string() or pa.types.is_string(values.type) or pa.types.is_null(values.type):
        return values.cast(kind)
    return pa.array([None if value is None else json.dumps(value, default=str) for value in values.to_pylist()], kind)


class _Writer:
    """Writes tables with one schema to files of at most :data:`ROWS_A_FILE` rows.

    Args:
        folder, name: the folder to write to, and the prefix of the files' names.
        schema: the tables' schema.
        jsonl: whether to write JSON lines instead of parquet.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, jsonl: bool) -> None:
        self.folder, self.name, self.schema, self.jsonl = folder, name, schema, jsonl
        self.num_files = self.num_rows = 0
        self.file: Any = None

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if self.file is None or self.num_rows + table.num_rows > ROWS_A_FILE:
            self.close()
            self._open()
        if self.jsonl:
            self.file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
        else:
            self.file.write_table(table)
        self.num_rows += table.num_rows

    def close(self) -> None:
        """Finish the file being written."""
        if self.file is not None:
            self.file.close()
        self.file, self.num_rows = None, 0

    def _open(self) -> None:
        path = self.folder / f"{self.name}-{self.num_files:05d}.{'jsonl' if self.jsonl else 'parquet'}"
        self.num_files += 1
        self.file = path.open("w", encoding="utf-8") if self.jsonl else pq.ParquetWriter(path, self.schema)
