"""Writes the files of a run."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from astra_accel.config import TrainingConfiguration
from astra_accel.core.sampler import Graph
from astra_accel.distributed.collectives import holding, on_main
from astra_accel.files.atomic import write_atomically
from astra_accel.files.folders import empty
from astra_accel.files.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EXTRAS,
    METRICS,
    PARTS,
    ROLLOUTS,
    TESTER,
    WRITTEN,
    environment,
    new_output_dir,
)
from astra_accel.files.run_lock import RunLock
from astra_accel.files.tables import rollout_rows, write_table
from astra_accel.training.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from astra_accel.experience.loader import Experience
    from astra_accel.training.trainer import AccelTrainer


def agree_on_output_dir(accelerator: Accelerator, config: TrainingConfiguration) -> Path:
    """The output folder, or if none is given, a new one made by the main process. All processes must call it."""
    return config.output_dir or on_main(accelerator, new_output_dir)


class RunFolder(TrainerCallback):
    """Writes a run's files, on the main process.

    Args:
        path: the output folder.
        lock: the folder's lock, which the caller holds and releases; None acquires one while training.
    """

    def __init__(self, path: Path, lock: RunLock | None = None) -> None:
        self.path = path
        self.lock = RunLock(path) if lock is None else lock
        self._is_lent, self._is_new = lock is not None, False

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def tester(self) -> Path:
        """The folder of the trained tester."""
        return self.path / TESTER

    @contextmanager
    def held(self, accelerator: Accelerator) -> Iterator[None]:
        """A context in which no other run writes to the folder; see :func:`holding`."""
        try:
            with nullcontext() if self._is_lent else holding(accelerator, self.lock):
                yield
        finally:
            if self._is_new:
                _remove_empty(self.path)

    def remove_if_unused(self) -> None:
        """Remove the folder if it was made for this object and nothing is written to it.

        It is removed after training, or when this object is garbage-collected.
        """
        self._is_new = True
        weakref.finalize(self, _remove_empty, self.path.absolute())

    def begin(self, config_yaml: str, overwrite: bool) -> None:
        """Start a run: delete an existing one if asked to, and write ``config.yaml``."""
        if overwrite:
            for part in (*PARTS, *EXTRAS):
                empty(self.path / part, WRITTEN.get(part, ("*",)))
        self.path.mkdir(parents=True, exist_ok=True)
        comments = "".join(f"# {line}\n" for line in environment())
        write_atomically(self.path / CONFIG, comments + config_yaml)

    def rewind(self, step: int) -> None:
        """Delete what a resumed run wrote after its checkpoint's training step; those steps are repeated.

        At step 0 everything is repeated, including the evaluation of the untrained tester.
        """
        metrics = self.path / METRICS
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step and step > 0]
            write_atomically(metrics, "".join(kept))
        for file in (self.path / ROLLOUTS).glob("step-*.parquet"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()

    def write_metrics(self, record: Mapping[str, Any]) -> None:
        """Append an update's line, or the untrained tester's, to ``metrics.jsonl``.

        Values that are not finite become null, since JSON has no nan.
        """
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def write_rollouts(self, step: int, graphs: Sequence[Graph]) -> Path:
        """Write every node of an experience to ``rollouts/step-<step>.parquet``."""
        path = self.path / ROLLOUTS / f"step-{step:06d}.parquet"
        write_table(path, [{"step": step, **row} for row in rollout_rows(graphs)])
        return path

    def on_step_end(self, trainer: AccelTrainer, experience: Experience, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a training step's rollouts and its lines of figures."""
        if not trainer.accelerator.is_main_process:
            return
        self.lock.verify()
        self.write_rollouts(experience.index + 1, experience.graphs)
        for record in records:
            self.write_metrics(record)


def _remove_empty(path: Path) -> None:
    """Remove a new folder for a run, and ``runs/``, if there is nothing in them."""
    with suppress(OSError):
        path.rmdir()
        path.parent.rmdir()
