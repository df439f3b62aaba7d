"""The lock of a folder, for all processes of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator

from astra_accel.distributed.collectives import on_main
from astra_accel.files.run_lock import RunLock


@contextmanager
def holding(accelerator: Accelerator, lock: RunLock) -> Iterator[RunLock]:
    """A context in which the main process has the lock of a folder.

    All processes together, and while one watches another run's lock none waits long for it.

    Raises:
        FolderInUseError: another run writes to the folder; says which.
        ConfigurationError: the folder can't be written to.
    """
    try:
        while (wait := on_main(accelerator, lock.attempt)) is not None:
            time.sleep(wait)
        yield lock
    finally:
        lock.release()
