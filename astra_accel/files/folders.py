"""Checks that folders can be written to, and deletes what a run wrote."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from astra_accel.errors import ConfigurationError

PROBE_BYTES = 4096
"""What is written to detect a full disk: one block."""


def check_writable(folder: Path, field: str, parts: Sequence[str] = ()) -> None:
    """Check that files can be written to a folder and its existing parts. Leaves nothing behind.

    Args:
        folder: the folder; if it doesn't exist yet, check that it can be made.
        field: the setting that named it, for the message.
        parts: the names of subfolders that a run writes to.

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
    """Check that a file can be written or overwritten. Leaves nothing behind.

    Raises:
        ConfigurationError: as in :func:`check_writable`; or it is a folder.
    """
    if file.is_dir():
        raise ConfigurationError(f"{field} {file} is a folder; expected the name of a file")
    if file.exists() and not file.is_file():
        return  # a device, a pipe
    check_writable(file.parent, field)


def made_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns the new ones, outermost first.

    Raises:
        OSError: it can't be made, or is a file.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def unwritable(folder: Path, field: str, error: OSError) -> ConfigurationError:
    """The error for a folder that can't be written to."""
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
    with suppress(OSError):  # another program has begun to write there
        folder.rmdir()


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists. Of a link, delete only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty(path: Path, patterns: tuple[str, ...] = ("*",)) -> None:
    """Delete a part of a run.

    If it is a link to a folder, a user chose that disk: the link stays, and only what a run writes is deleted from the
    folder.

    Args:
        path: the part; need not exist.
        patterns: ``Path.glob`` patterns of the names that a run writes in it.
    """
    if path.is_symlink() and path.is_dir():
        for pattern in patterns:
            for inside in path.glob(pattern):
                remove(inside)
    else:
        remove(path)
