"""The files of an evaluation.

::

    evaluation.json              what is evaluated: prompts, models, sampling, scorers; and versions
    nodes/part-000000.parquet    every node of the first episodes, and so on; complete or absent
    nodes.jsonl                  all of them once more, if asked for
    benign.parquet               the target's answers to harmless requests, if it is asked any
    metrics.json                 the figures
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from astra_accel.errors import ConfigurationError
from astra_accel.files.atomic import write_atomically
from astra_accel.files.folders import empty
from astra_accel.files.run_folder import environment
from astra_accel.files.tables import write_table

EVALUATION = "evaluation"
"""The default name of the folder of a run's evaluation."""
EVALUATION_UNTRAINED = "evaluation_untrained"
"""The same for the evaluation of its untrained tester."""
IDENTITY, NODES, LINES, FIGURES = "evaluation.json", "nodes", "nodes.jsonl", "metrics.json"
BENIGN = "benign.parquet"
FILES = (IDENTITY, NODES, LINES, BENIGN, FIGURES)
TRIES = "tries"
_UNSAID = {TRIES: 1}
"""What an evaluation was made with if its identity doesn't say."""
FIELD = "--output"
"""The option that names the folder of an evaluation."""


class EvaluationError(ConfigurationError):
    """A folder does not hold the requested evaluation."""


def find_evaluation(path: str | Path) -> Path:
    """The folder of an evaluation: the given one, or ``evaluation/`` in a run."""
    inside = Path(path) / EVALUATION
    return inside if inside.is_dir() else Path(path)


class EvaluationFolder:
    """Reads and writes the files of one evaluation.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def begin(self, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        """Record what is evaluated, or check that the folder holds a part of the same evaluation, to continue it.

        Raises:
            EvaluationError: it holds another evaluation; names what differs.
        """
        if overwrite:
            for name in FILES:
                empty(self.path / name)
        self.check({**_UNSAID, **identity})
        if not (self.path / IDENTITY).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"identity": identity, "environment": environment()}, indent=2)
            write_atomically(self.path / IDENTITY, text + "\n")

    def check(self, identity: Mapping[str, Any]) -> None:
        """Check that the folder does not hold another evaluation, given all or part of what is evaluated.

        Raises:
            EvaluationError: it holds another one; names what differs.
        """
        if not (self.path / IDENTITY).exists():
            held = [name for name in (NODES, FIGURES) if (self.path / name).exists()]
            if held:
                raise EvaluationError(
                    f"{self.path} has {' and '.join(held)}, but no {IDENTITY} to say of what; choose another folder, "
                    f"or overwrite it"
                )
            return
        there = {**_UNSAID, **self.identity()}
        now = json.loads(json.dumps(identity))  # as read from JSON: tuples become lists
        differences = differing({name: there.get(name) for name in now}, now)
        if differences:
            raise EvaluationError(
                f"{self.path} holds another evaluation; different are {'; '.join(differences)}. Choose another folder, "
                f"or overwrite it"
            )

    def identity(self) -> dict[str, Any]:
        """What is evaluated.

        Raises:
            FileNotFoundError, EvaluationError: there is no evaluation, or its file can't be read.
        """
        return self._read_json(IDENTITY)["identity"]

    def metrics(self) -> dict[str, Any]:
        """The figures in ``metrics.json``. Raises the errors of :meth:`identity`."""
        return self._read_json(FIGURES)

    def whole_parts(self, num_parts: int) -> list[int]:
        """The numbers of the parts that exist; one that can't be read is written again."""
        return [part for part in range(num_parts) if _readable(self.part(part))]

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.path / NODES / f"part-{number:06d}.parquet"

    def write_part(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the nodes of a part's episodes."""
        write_table(self.part(number), rows)

    def rows(self) -> list[dict[str, Any]]:
        """Every node, in the order of episodes.

        Raises:
            FileNotFoundError: there are no nodes.
        """
        files = sorted((self.path / NODES).glob("part-*.parquet"))
        if not files:
            raise FileNotFoundError(f"{self.path / NODES} has no part-*.parquet; expected the nodes of an evaluation")
        tables = [_without_empty_types(pq.read_table(file)) for file in files]
        return pa.concat_tables(tables, promote_options="permissive").to_pylist()

    def benign_rows(self) -> list[dict[str, Any]]:
        """The answers to harmless requests, if there are any yet."""
        return pq.read_table(self.path / BENIGN).to_pylist() if _readable(self.path / BENIGN) else []

    def write_benign(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the answers to harmless requests."""
        write_table(self.path / BENIGN, rows)

    def write_lines(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write every node as a JSON line."""
        write_atomically(self.path / LINES, "".join(json.dumps(row) + "\n" for row in rows))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, completely or not at all."""
        write_atomically(self.path / FIGURES, json.dumps(metrics, indent=2, allow_nan=False) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} in {self.path}; expected the folder of an evaluation that has ended")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvaluationError(f"{path} is no JSON: {error}") from error


def differing(before: Any, now: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, by dotted name: ``rollout.tree_depth (3, now 5)``."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys([*before, *now])
        found = [differing(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names]
        return [line for lines in found for line in lines]
    if before == now:
        return []
    if isinstance(before, list) and isinstance(now, list):
        return [f"{name} ({_first_difference(before, now)})"]
    return [f"{name} ({before!r}, now {now!r})"]


def _first_difference(before: list[Any], now: list[Any]) -> str:
    place = next((index for index, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"{len(before)}, now {len(now)}"
    return f"number {place + 1}: {before[place]!r}, now {now[place]!r}"


def _without_empty_types(table: pa.Table) -> pa.Table:
    """The table with columns without any value of no type, so that they take that of the other parts."""
    for index, column in enumerate(table.columns):
        if column.null_count == len(column):
            table = table.set_column(index, table.field(index).name, pa.nulls(len(column)))
    return table


def _readable(file: Path) -> bool:
    try:
        pq.read_metadata(file)
    except (OSError, pa.ArrowInvalid):
        return False
    return True
