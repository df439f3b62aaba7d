"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(text: str) -> str:
    """A path with ``~`` or ``~user`` at its beginning expanded as in a shell. Other texts stay unchanged.

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
    """A path from the command line, expanded here, since shells leave ``--output=~/x`` unchanged."""
    return Path(expanded(text))
