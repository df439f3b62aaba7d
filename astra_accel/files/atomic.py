"""Writes files and folders that are complete or absent, and hashes files to prove it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astra_accel.errors import SharingError


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    if path.is_dir() and os.name == "nt":  # Windows can't open folders
        return
    # Windows syncs only files opened for writing, and folders can only be opened for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


README = "README.md"


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """A context with a temporary folder to write to, which gets its final name when all is written.

    Raises:
        SharingError: something with that name already exists.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SharingError(f"{folder} already exists and is not empty; expected a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's are private to the user
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
