"""Reads what runs wrote, for a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from astra_accel.evaluation.folder import EVALUATION_UNTRAINED, FIGURES, NODES, EvaluationFolder, find_evaluation
from astra_accel.files.run_folder import CONFIG, METRICS, ROLLOUTS
from astra_accel.files.run_status import STATUS, Status, read_status
from astra_accel.files.text import visible
from astra_accel.report.parts import Part, read_part

Stamp = tuple[int, int]
"""When a file was written, and its size: a different stamp means different content."""


@dataclass(frozen=True)
class Run:
    """What a run has written so far.

    Attributes:
        name: its folder's name, safe to display.
        path: its folder.
        status: its status; None if it never wrote one.
        config_text: ``config.yaml`` without the comments; empty if there is none.
        environment: versions, one per line.
        updates: the lines of ``metrics.jsonl``.
        num_skipped: how many of its lines were cut off or are not objects.
        figures: ``metrics.json`` of its evaluation; None if it has none.
        held_out: the nodes of its evaluation.
        training: the nodes of its rollouts in training, one part per step.
    """

    name: str
    path: Path
    status: Status | None
    config_text: str
    environment: list[str]
    updates: list[dict[str, Any]]
    num_skipped: int
    figures: dict[str, Any] | None
    held_out: Sequence[Part]
    training: Sequence[Part]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, section by section."""
        return yaml.safe_load(self.config_text) or {}

    @property
    def threshold(self) -> float:
        """The score at and above which a response is a success."""
        return 0.5 if self.figures is None else self.figures["threshold"]


def read_run(path: str | Path) -> Run:
    """Read a run once. Raises the errors of :meth:`RunReader.read`."""
    return RunReader(path).read()


class RunReader:
    """Reads a run repeatedly while it continues; unchanged files of nodes are not read again.

    Args:
        path: the folder of a run, of an evaluation inside one, or of a stand-alone evaluation.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._parts: dict[Path, tuple[Stamp, Part]] = {}

    def is_evaluation(self) -> bool:
        """Whether this is only an evaluation, without a run that may continue."""
        return (find_evaluation(self.path) / FIGURES).is_file() and not (self.path / METRICS).is_file()

    def stamps(self) -> dict[Path, Stamp]:
        """The current stamps of the files that a report is made from."""
        evaluation = find_evaluation(self.path)
        files = [self.path / name for name in (STATUS, CONFIG, METRICS)]
        # The sentence at the top compares with the evaluation of the untrained tester next to it.
        files += [evaluation / FIGURES, evaluation.parent / EVALUATION_UNTRAINED / FIGURES]
        files += [*_nodes(evaluation), *_rollouts(self.path)]
        return {file: stamp for file in files if (stamp := _stamp(file)) is not None}

    def read(self) -> Run:
        """The run as it is now.

        Raises:
            FileNotFoundError: there is nothing to report, or nothing yet.
            EvaluationError: the figures of its evaluation can't be read.
        """
        path = self.path
        evaluation = EvaluationFolder(find_evaluation(path))
        evaluated = (evaluation.path / FIGURES).is_file()
        if not evaluated and not (path / METRICS).is_file():
            raise FileNotFoundError(_nothing_in(path))
        nodes = _nodes(evaluation.path) if evaluated else []
        if evaluated and not nodes:
            raise FileNotFoundError(f"{evaluation.path / NODES} has no part-*.parquet; expected an evaluation's nodes")
        text = (path / CONFIG).read_text(encoding="utf-8") if (path / CONFIG).is_file() else ""
        lines = text.splitlines(keepends=True)
        updates, num_skipped = _read_lines(path / METRICS)
        rollouts = _rollouts(path)
        self._read_parts([*nodes, *rollouts])
        return Run(
            name=visible(path.resolve().name),
            path=path,
            status=read_status(path),
            config_text="".join(line for line in lines if not line.startswith("#")),
            environment=[line.removeprefix("#").strip() for line in lines if line.startswith("#")],
            updates=updates,
            num_skipped=num_skipped,
            figures=evaluation.metrics() if evaluated else None,
            held_out=[self._parts[file][1] for file in nodes],
            training=[self._parts[file][1] for file in rollouts],
        )

    def _read_parts(self, files: Sequence[Path]) -> None:
        """Read files that are new or rewritten, e.g. by a resumed run; forget those that are gone."""
        kept = {}
        for file in files:
            stamp = _stamp(file)
            if stamp is None:
                raise FileNotFoundError(f"{file} disappeared while it was being read")
            known = self._parts.get(file)
            kept[file] = known if known is not None and known[0] == stamp else (stamp, read_part(file))
        self._parts = kept


def _nothing_in(path: Path) -> str:
    if not path.exists():
        return f"there is no folder {path}; expected the folder of a run or an evaluation"
    begun = ": no training step has ended yet" if (path / CONFIG).is_file() else ""
    return f"{path} has neither {METRICS} nor an evaluation's {FIGURES}; expected a run or an evaluation{begun}"


def _rollouts(path: Path) -> list[Path]:
    return sorted((path / ROLLOUTS).glob("step-*.parquet"))


def _nodes(evaluation: Path) -> list[Path]:
    return sorted((evaluation / NODES).glob("part-*.parquet"))


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON lines file, and how many lines are not objects: a killed run may leave half a line."""
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
