"""Signals that announce the end of a process, noted so that the run can stop at a place to continue from.

Schedulers send them some time before they kill. Here they are only noted; the trainer asks after each training step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGUSR1") if name in signal.Signals.__members__)
# A launcher passes on what a scheduler sent to all processes of the job, so one signal may come twice in a row.
REPEATED_WITHIN = 5.0


class Preemption:
    """Whether this process was told to end.

    Attributes:
        noted: a signal came while this was :meth:`watching`.
    """

    def __init__(self) -> None:
        self.noted, self._noted_at = False, 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the first signal instead of dying of it; a later one means what it meant before.

        Handlers belong to the main thread: in another one nothing is noted and signals are left as they are.
        """
        self.noted, self._process = False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A handler that was not installed from Python (None) could not be put back.
        self._before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) is not None}
        try:
            for number in self._before:
                signal.signal(number, self._note)
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        again = self.noted and time.monotonic() - self._noted_at > REPEATED_WITHIN
        if again or os.getpid() != self._process:  # A process that was forked meanwhile, by a scorer say, just ends.
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        elif not self.noted:
            self.noted, self._noted_at = True, time.monotonic()
