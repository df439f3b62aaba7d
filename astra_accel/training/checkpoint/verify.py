"""Whether a checkpoint is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from astra_accel.distributed.collectives import gather_results, on_main
from astra_accel.files.atomic import sha256
from astra_accel.training.checkpoint.layout import (
    FORMAT,
    MANIFEST,
    CheckpointError,
    CheckpointFormatError,
    list_checkpoints,
    named_checkpoints,
)


@dataclass(frozen=True)
class WholeCheckpoint:
    """A checkpoint whose files were verified, by :func:`verify_checkpoint` or :func:`verify_together`."""

    path: Path


def whole(checkpoint: Path | WholeCheckpoint) -> WholeCheckpoint:
    """A verified checkpoint; verifies it here if that has not been done."""
    return checkpoint if isinstance(checkpoint, WholeCheckpoint) else verify_checkpoint(checkpoint)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a folder (None: there is none), and why each newer one is not whole.

    Raises:
        CheckpointFormatError: the newest is from another version of the package, which should be used to resume from
            it.
    """
    passed_over = []
    for path in reversed(named_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except CheckpointFormatError:
            raise
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return path, passed_over
    return None, passed_over


def newest_together(
    accelerator: Accelerator, folder: Path, known: WholeCheckpoint | None = None
) -> tuple[WholeCheckpoint | None, list[str]]:
    """Like :func:`newest_checkpoint`, with the files split among the processes. All processes must call it.

    Args:
        accelerator: connects the processes.
        folder: the folder of checkpoints.
        known: a checkpoint that was verified already.

    Raises:
        CheckpointFormatError: the newest is from another version of the package, which should be used to resume from
            it.
    """
    passed_over: list[str] = []
    # One process looks for all, since each could see a different moment.
    for path in on_main(accelerator, lambda: [*reversed(named_checkpoints(folder))]):
        if known is not None and path == known.path:
            return known, passed_over
        try:
            return verify_together(accelerator, path), passed_over
        except CheckpointFormatError:
            raise
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, passed_over


def verify_together(accelerator: Accelerator, path: Path) -> WholeCheckpoint:
    """Check that a checkpoint is whole; each process reads a part of the files. All processes must call it.

    Raises:
        CheckpointError: as in :func:`verify_checkpoint`, the same on every process.
    """

    def problem() -> CheckpointError | None:
        try:
            files = listed_files(path)
            # Dealt out in turn, largest first, so that the processes read about equal amounts.
            files.sort(key=lambda file: -file[0].stat().st_size)
            _verify_contents(files[accelerator.process_index :: accelerator.num_processes])
        except CheckpointError as error:
            return error
        return None

    for found in gather_results(accelerator, problem):
        if found is not None:
            raise found
    return WholeCheckpoint(path)


def verify_checkpoint(path: Path) -> WholeCheckpoint:
    """Check that a checkpoint is whole.

    Raises:
        CheckpointError: the folder is not a checkpoint, or a file is missing or damaged; names it.
    """
    _verify_contents(listed_files(path))
    return WholeCheckpoint(path)


def listed_files(path: Path) -> list[tuple[Path, str]]:
    """The files of a checkpoint and their expected hashes. All exist and have the right sizes.

    Raises:
        CheckpointError: the folder is not a checkpoint, or a file is missing or has another size; names it.
    """
    if not (path / MANIFEST).is_file():
        near = list_checkpoints(path) or list_checkpoints(path / "checkpoints") or list_checkpoints(path.parent)
        there_are = f"; there are {', '.join(map(str, near))}" if near else ""
        raise CheckpointError(f"{path} is not a checkpoint (it has no {MANIFEST}){there_are}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        format_number = manifest["format"]
        files = [(name, expected["size"], expected["sha256"]) for name, expected in manifest["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error!r}") from error
    if format_number != FORMAT:
        raise CheckpointFormatError(f"{path} has checkpoint format {format_number}; this version reads {FORMAT}")
    for name, size, _ in files:
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the checkpoint")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, expected {size}: it is damaged")
    return [(path / name, digest) for name, _, digest in files]


def _verify_contents(files: Sequence[tuple[Path, str]]) -> None:
    for file, digest in files:
        if sha256(file) != digest:
            raise CheckpointError(f"{file} has changed since it was written: it is damaged")
