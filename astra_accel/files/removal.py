"""Deleting what a run wrote, also where a part of it lies on another disk behind a link."""

from __future__ import annotations

import shutil
from pathlib import Path


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
