"""How fast an endpoint is asked: within its limits, and more slowly where it says so."""

from __future__ import annotations

import math
import random
import threading
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 120.0
"""Seconds between two attempts at most, also where the server asks for more; jitter comes on top."""
MOST_JITTER = 5.0
"""Seconds on top of what a server asks for at most."""


class Pace:
    """Spaces the requests of all threads of a process.

    Args:
        requests_per_minute, tokens_per_minute: the part of each limit that this process has; None is no limit.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._each = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()
        self._held, self._spread = 0.0, 0.0

    def wait(self, given_up: threading.Event) -> bool:
        """Wait for one's turn; returns whether the questions were given up meanwhile."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._each
            if turn == self._held:  # where nothing spaces them, all would come at the moment that the hold ends
                turn += random.uniform(0.0, self._spread)
        seconds = turn - time.monotonic()
        return given_up.wait(seconds) if seconds > 0 else given_up.is_set()

    def spent(self, num_tokens: int) -> None:
        """Count the tokens of an answer."""
        with self._lock:
            self._next = max(self._next, time.monotonic()) + num_tokens * self._token

    def hold(self, seconds: float) -> None:
        """Let no thread ask for some seconds: the server has too much to do."""
        with self._lock:
            until = time.monotonic() + seconds
            if until > self._next:
                self._next = self._held = until
                self._spread = _most_jitter(seconds)


def pause(attempt: int, asked: str | None) -> float:
    """Seconds until the next attempt, with jitter, so that threads which failed together don't come back together.

    Args:
        attempt: how many attempts there were before the one that failed.
        asked: what the server asks for in ``Retry-After``: seconds, or a date; None if it asks for nothing.

    Returns:
        at least as long as the server asks, and a little more; else twice as long each time.
    """
    wanted = _asked_for(asked)
    if wanted is None:
        return min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
    wanted = min(LONGEST_WAIT, wanted)
    return wanted + random.uniform(0.0, _most_jitter(wanted))


def _most_jitter(seconds: float) -> float:
    return min(MOST_JITTER, 0.1 * seconds)


def _asked_for(asked: str | None) -> float | None:
    """The seconds that a ``Retry-After`` comes to, at least 0; None if it can't be read."""
    if asked is None:
        return None
    try:
        seconds = float(asked)
    except ValueError:
        try:
            moment = parsedate_to_datetime(asked)
        except ValueError:
            return None
        # A date without a zone is one of Greenwich, as all of HTTP are.
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else None
