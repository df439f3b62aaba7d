"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(text: str) -> str:
    """A path, with ``~`` and ``~user`` at its beginning as a shell reads them. What is no path stays as it is.

    Raises:
        ValueError: there is no such home folder.
    """
    if not text.startswith("~"):
        return text
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise ValueError(
            f"found {text!r}, but there is no home folder {text.partition('/')[0]}; expected another path "
            f"(./{text} for a folder of that name)"
        )
    return found


def user_path(text: str) -> Path:
    """A path of a command line. Shells read ``--output=~/x`` as it is."""
    return Path(expanded(text))
