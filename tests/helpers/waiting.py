"""Waiting for what other processes and threads do, but never for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 200
"""More than a machine that is busy with other things needs."""


def wait_until(happened: Callable[[], object], what: str, *, pause: float = 0.01) -> None:
    """Ask again and again, ``pause`` seconds apart, until it has happened.

    Raises:
        AssertionError: it didn't within ``SECONDS``; says ``what`` was waited for.
    """
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        time.sleep(pause)
