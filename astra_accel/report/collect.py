"""What runs wrote, read for a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from astra_accel.evaluation.folder import METRICS as FIGURES
from astra_accel.evaluation.folder import EvaluationFolder, find_evaluation
from astra_accel.training.outputs import CONFIG, METRICS, ROLLOUTS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run as far as it has come.

    Attributes:
        name: its folder's.
        path: its folder.
        config_text: ``config.yaml`` without the comments; empty where there is none.
        environment: versions, a line each.
        updates: the lines of ``metrics.jsonl``.
        num_skipped: lines of it that were cut off or are no objects.
        figures: ``metrics.json`` of its evaluation; None where it has none.
        held_out: a row a node of its evaluation.
        training: a row a node of its rollouts in training.
    """

    name: str
    path: Path
    config_text: str
    environment: list[str]
    updates: list[dict[str, Any]]
    num_skipped: int
    figures: dict[str, Any] | None
    held_out: Sequence[Row]
    training: Sequence[Row]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, section by section."""
        return yaml.safe_load(self.config_text) or {}

    @property
    def threshold(self) -> float:
        """The score from which on a response is a success."""
        return 0.5 if self.figures is None else self.figures["threshold"]


def read_run(path: str | Path) -> Run:
    """Read the folder of a run, of an evaluation in it, or of an evaluation alone.

    Raises:
        FileNotFoundError: there is nothing to report.
        EvaluationError: the figures of its evaluation can't be read.
    """
    path = Path(path)
    evaluation = EvaluationFolder(find_evaluation(path))
    evaluated = (evaluation.path / FIGURES).is_file()
    if not (path / METRICS).is_file() and not evaluated:
        raise FileNotFoundError(
            f"{path} has neither {METRICS} nor an evaluation's {FIGURES}; expected the folder of a run or an evaluation"
        )
    text = (path / CONFIG).read_text(encoding="utf-8") if (path / CONFIG).is_file() else ""
    lines = text.splitlines(keepends=True)
    updates, num_skipped = _read_lines(path / METRICS)
    return Run(
        name=path.resolve().name,
        path=path,
        config_text="".join(line for line in lines if not line.startswith("#")),
        environment=[line.removeprefix("#").strip() for line in lines if line.startswith("#")],
        updates=updates,
        num_skipped=num_skipped,
        figures=evaluation.metrics() if evaluated else None,
        held_out=evaluation.rows() if evaluated else [],
        training=list(_read_rollouts(path / ROLLOUTS)),
    )


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON lines file and how many lines are none: a run that is killed may leave half a line."""
    if not path.is_file():
        return [], 0
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    found = [value for value in map(_parsed, lines) if isinstance(value, dict)]
    return found, len(lines) - len(found)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_rollouts(folder: Path) -> Iterator[Row]:
    for file in sorted(folder.glob("step-*.parquet")):
        yield from pq.read_table(file).to_pylist()
