"""The files that a run writes under its output folder."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator

from astra_accel.config import TrainingConfiguration
from astra_accel.core.sampler import Graph, walk
from astra_accel.files.removal import empty
from astra_accel.files.run_lock import RunLock, check_nesting
from astra_accel.files.writable import check_writable
from astra_accel.training.callbacks import TrainerCallback
from astra_accel.training.distributed import on_main

if TYPE_CHECKING:
    from astra_accel.training.experience import Experience
    from astra_accel.training.trainer import AccelTrainer

PACKAGES = ("astra-accel", "torch", "accelerate", "transformers", "peft", "datasets", "numpy")
CONFIG, METRICS, ROLLOUTS, CHECKPOINTS, TESTER = "config.yaml", "metrics.jsonl", "rollouts", "checkpoints", "tester"
PARTS = (CONFIG, METRICS, ROLLOUTS, CHECKPOINTS, TESTER)
# What a run may leave besides: batches of an update that was not made, evaluations and a report of it, TensorBoard's
# files, whether it goes on.
EVALUATIONS = ("evaluation", "evaluation_untrained")
EXTRAS = ("non_finite", *EVALUATIONS, "report.html", "report.md", "astra_accel", "status.json")
WRITTEN = {
    ROLLOUTS: ("step-*.parquet", "step-*.tmp"),
    CHECKPOINTS: ("step-*", ".step-*"),
    "non_finite": ("*.pt",),
    "astra_accel": ("events.out.tfevents.*", "[0-9]*"),
}
"""Names that a run writes in those of its folders in which, behind a link, there may be other files too."""
FIELD = "training.output_dir"


class OutputFolderError(FileExistsError):
    """The output folder holds a run that would be mixed with the new one."""


def new_output_dir() -> Path:
    """Make a folder for a run that was given none. Of runs that begin in the same second each gets its own.

    Raises:
        ConfigurationError: it can't be made.
    """
    name = Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    check_writable(name.parent, f"{FIELD} is null, and the folder for new runs")
    number = 1
    while True:
        name.parent.mkdir(parents=True, exist_ok=True)
        path = name if number == 1 else name.with_name(f"{name.name}-{number}")
        try:
            path.mkdir()  # what is there already is another run's, also where both ask at the same moment
        except FileExistsError:
            number += 1
        except FileNotFoundError:
            pass  # another run has just removed the empty runs/
        else:
            return path


def agree_on_output_dir(accelerator: Accelerator, config: TrainingConfiguration) -> Path:
    """The output folder; where none is given, a new one that the main process makes. All processes together."""
    return config.output_dir or on_main(accelerator, new_output_dir)


@contextmanager
def holding(accelerator: Accelerator, lock: RunLock) -> Iterator[RunLock]:
    """A context in which the main process has the lock of a folder.

    All processes together, and while one watches another run's lock none waits long for it.

    Raises:
        FolderInUseError: another run writes to the folder; says which.
        ConfigurationError: the folder can't be written to.
    """
    try:
        while (wait := on_main(accelerator, lock.attempt)) is not None:
            time.sleep(wait)
        yield lock
    finally:
        lock.release()


def check_place(config: TrainingConfiguration) -> None:
    """Find an output folder that can't be written to, or in whose place another run writes.

    Raises:
        FolderInUseError, ConfigurationError: names the field, and what is wrong with it.
    """
    if config.output_dir is None:
        check_writable(Path("runs"), f"{FIELD} is null, and the folder for new runs")
        return
    check_nesting(config.output_dir, FIELD, (*PARTS, *EXTRAS))
    check_writable(config.output_dir, FIELD, (*PARTS, *EXTRAS))


def check_output_dir(config: TrainingConfiguration, resuming: bool, restarting: bool = False) -> None:
    """Find out whether the output folder is free.

    Args:
        config: names the folder.
        resuming: the run goes on from a checkpoint, so the folder may hold anything.
        restarting: the run begins anew where it may have been before, and was stopped before it had a checkpoint. The
            folder may hold what it left, but no tester: that is the result of a run that ended.

    Raises:
        OutputFolderError: it holds a run; says how to resume or to overwrite it.
        NotADirectoryError: it is a file.
    """
    folder = config.output_dir
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"training.output_dir is {folder}, which is a file; expected a folder")
    found = [part for part in ((TESTER,) if restarting else PARTS) if (folder / part).exists()]
    if found and not resuming and not config.overwrite_output_dir:
        checkpoints = sorted((folder / CHECKPOINTS).glob("step-*"))
        resume = f"--resume {checkpoints[-1]}" if checkpoints else "(it has no checkpoint to resume from)"
        raise OutputFolderError(
            f"training.output_dir {folder} already holds a run ({', '.join(found)}). To go on with it: {resume}. "
            f"To delete it: --training.overwrite_output_dir true. Or choose another folder"
        )


class RunFolder(TrainerCallback):
    """Writes a run's files, on the main process.

    Args:
        path: the output folder.
        lock: of the folder, which the caller holds and releases; None takes one while training.
    """

    def __init__(self, path: Path, lock: RunLock | None = None) -> None:
        self.path = path
        self.lock = RunLock(path) if lock is None else lock
        self._is_lent, self._is_new = lock is not None, False

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def tester(self) -> Path:
        """Where the trained tester is."""
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
        """Remove the folder, which was made for this object, if nothing is written to it: after training, or when this
        object goes."""
        self._is_new = True
        weakref.finalize(self, _remove_empty, self.path.absolute())

    def begin(self, config_yaml: str, overwrite: bool) -> None:
        """Start a run: delete the one that is there if asked to, and write ``config.yaml``."""
        if overwrite:
            for part in (*PARTS, *EXTRAS):
                empty(self.path / part, WRITTEN.get(part, ("*",)))
        self.path.mkdir(parents=True, exist_ok=True)
        comments = "".join(f"# {line}\n" for line in environment())
        write_atomically(self.path / CONFIG, comments + config_yaml)

    def rewind(self, step: int) -> None:
        """Drop what a run that is resumed wrote after its checkpoint's training step; those steps come again.

        At step 0 all comes again, the evaluation of the untrained tester too.
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

        What is not finite becomes null, as JSON has no nan.
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


def rollout_rows(graphs: Sequence[Graph]) -> Iterator[dict[str, Any]]:
    """One row a node: episode, path (child indices from the root), turn, texts, reward and what is known of it."""
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


def _typed(column: pa.Array) -> pa.Array:
    """A column without any value as numbers, which it has in other steps: all scores of this one were missing."""
    return column.cast(pa.float64()) if pa.types.is_null(column.type) else column


def valid_text(text: str) -> str:
    """The text with what UTF-8 can't hold (lone surrogates) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a parquet file, complete or not at all; a row without a column has null there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    names = dict.fromkeys(name for row in rows for name in row)  # pyarrow would look at the first row alone
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    pq.write_table(pa.table({name: _typed(column) for name, column in columns.items()}), temporary)
    os.replace(temporary, path)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def environment() -> list[str]:
    """Versions, and the git revision where the working folder has one, a line each."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} (not installed as a package)")
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        lines.append(f"git revision {revision}")
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or no repository: the line is for where there is one
    return lines
