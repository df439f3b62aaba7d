"""Records signals that announce a process's end, so that the run can stop where it can be resumed.

Schedulers send them some time before they kill a job. They are only recorded here; the trainer checks after each
training step.
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
# A launcher forwards a signal that the scheduler also sent to every process of the job, so it may arrive twice.
REPEATED_WITHIN = 5.0


class Preemption:
    """Whether this process was asked to end.

    Attributes:
        noted: whether a signal arrived during :meth:`watching`.
    """

    def __init__(self) -> None:
        self.noted, self._noted_at = False, 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the first signal instead of dying from it; later signals are handled as before.

        Only the main thread can set handlers: in another thread nothing is recorded and signals keep their handlers.
        """
        self.noted, self._process = False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A handler that was not installed from Python (None) could not be restored.
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
        if again or os.getpid() != self._process:  # A process forked meanwhile, e.g. by a scorer, just ends.
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        elif not self.noted:
            self.noted, self._noted_at = True, time.monotonic()
