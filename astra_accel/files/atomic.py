"""Files and folders that are complete or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astra_accel.errors import SharingError


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


README = "README.md"


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the name that it is to have when all is written.

    Raises:
        SharingError: there is something of that name already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SharingError(f"{folder} is there already and not empty; expected a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's own are for nobody else
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
