"""How fast an endpoint is asked: within its limits, and more slowly where it says so."""

from __future__ import annotations

import random
import threading
import time

LONGEST_WAIT = 120.0
"""Seconds between two attempts at most, also where the server asks for more."""


class Pace:
    """Spaces the requests of all threads of a process.

    Args:
        requests_per_minute, tokens_per_minute: this process's part of the limits; None is no limit.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._each = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self, given_up: threading.Event) -> bool:
        """Wait for one's turn; returns whether the questions were given up meanwhile."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._each
        seconds = turn - time.monotonic()
        return given_up.wait(seconds) if seconds > 0 else given_up.is_set()

    def spent(self, num_tokens: int) -> None:
        """Count the tokens of an answer."""
        with self._lock:
            self._next = max(self._next, time.monotonic()) + num_tokens * self._token

    def hold(self, seconds: float) -> None:
        """Let no thread ask for some seconds: the server has too much to do."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def pause(attempt: int, asked: str | None) -> float:
    """Seconds until the next attempt: as the server asks, else twice as long each time, with jitter."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(asked or "")))
    except ValueError:  # none, or a date
        return min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
