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
    """A checkpoint that was verified, here if it was not yet."""
    return checkpoint if isinstance(checkpoint, WholeCheckpoint) else verify_checkpoint(checkpoint)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a folder that is whole (None: there is none), and why each newer one is not.

    Raises:
        CheckpointFormatError: another version of the package can continue from it, and should.
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
    """As :func:`newest_checkpoint`, with the files spread over the processes. All processes together.

    Args:
        accelerator: the processes.
        folder: of checkpoints.
        known: one that was verified already.

    Raises:
        CheckpointFormatError: another version of the package can resume from it, and should.
    """
    passed_over: list[str] = []
    # One process looks for all, or they might see different moments.
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
    """Check that a checkpoint is whole; each process reads its share of the files. All processes together.

    Raises:
        CheckpointError: as :func:`verify_checkpoint`, the same on every process.
    """

    def problem() -> CheckpointError | None:
        try:
            files = listed_files(path)
            # The largest first, in turn, so that the processes have about as much to read.
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
        CheckpointError: names the folder that is none, or the file that is missing or damaged.
    """
    _verify_contents(listed_files(path))
    return WholeCheckpoint(path)


def listed_files(path: Path) -> list[tuple[Path, str]]:
    """The files of a checkpoint and the hashes that they should have. All are there, with the right sizes.

    Raises:
        CheckpointError: names the folder that is no checkpoint, or the file that is missing or of another size.
    """
    if not (path / MANIFEST).is_file():
        near = list_checkpoints(path) or list_checkpoints(path / "checkpoints") or list_checkpoints(path.parent)
        there_are = f"; there are {', '.join(map(str, near))}" if near else ""
        raise CheckpointError(f"{path} is no checkpoint (it has no {MANIFEST}){there_are}")
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
            raise CheckpointError(f"{file} has other contents than when it was written: it is damaged")
