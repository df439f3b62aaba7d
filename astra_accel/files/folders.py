"""Folders: whether one can be written to, and deleting what a run wrote."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from astra_accel.errors import ConfigurationError

PROBE_BYTES = 4096
"""What is written to find a full disk: a block."""


def check_writable(folder: Path, field: str, parts: Sequence[str] = ()) -> None:
    """Make sure that files can be written to a folder and those of its parts that are there. Nothing is left behind.

    Args:
        folder: may not be there yet; whether it can be made is found out too.
        field: how a person named it, for the message.
        parts: names of folders in it that a run writes to.

    Raises:
        ConfigurationError: it can't be written to; names the field, the folder and why.
    """
    made: list[Path] = []
    try:
        made = made_folders(folder)
        for place in (folder, *(folder / part for part in parts)):
            if place.is_symlink() and not place.exists():
                raise FileNotFoundError(f"{place} is a link to {os.readlink(place)}, which is not there")
            if place.is_dir():
                _write_to(place)
    except OSError as error:
        raise unwritable(folder, field, error) from error
    finally:
        for place in reversed(made):
            _remove_empty(place)


def check_file_writable(file: Path, field: str) -> None:
    """Make sure that a file can be written, or written again, where a person wants it. Nothing is left behind.

    Raises:
        ConfigurationError: as :func:`check_writable`; or it is a folder.
    """
    if file.is_dir():
        raise ConfigurationError(f"{field} {file} is a folder; expected the name of a file")
    if file.exists() and not file.is_file():
        return  # a device, a pipe
    check_writable(file.parent, field)


def made_folders(folder: Path) -> list[Path]:
    """Make a folder with all above it; those that were not there before, the outermost first.

    Raises:
        OSError: it can't be made, or is a file.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def unwritable(folder: Path, field: str, error: OSError) -> ConfigurationError:
    """The error of a folder that can't be written to."""
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        what = "which is a file" if file == folder else f"but {file} is a file"
        return ConfigurationError(f"{field} is {folder}, {what}; expected a folder")
    return ConfigurationError(
        f"{field} {folder} can't be written to: {error}; expected a folder on a disk with room, in which you may write"
    )


def _write_to(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * PROBE_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # somebody else has begun to write there
        folder.rmdir()


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there. Of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty(path: Path, patterns: tuple[str, ...] = ("*",)) -> None:
    """Delete a part of a run. Where it is a link to a folder, that was somebody's choice of a disk: the link stays, and
    of what is in the folder goes what a run writes there.

    Args:
        path: the part; need not be there.
        patterns: of the names that a run writes in it, for ``Path.glob``.
    """
    if path.is_symlink() and path.is_dir():
        for pattern in patterns:
            for inside in path.glob(pattern):
                remove(inside)
    else:
        remove(path)
