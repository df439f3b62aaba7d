"""A run's status in ``status.json``, so that other programs can tell whether it continues.

A killed process can't report its end. So the file names the process, and readers on the same machine check whether it
still exists.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from astra_accel.errors import ConfigurationError, Preempted
from astra_accel.files.atomic import write_atomically
from astra_accel.files.process_table import own_start, process_is_alive
from astra_accel.files.run_lock import LockLostError
from astra_accel.files.text import valid_text

STATUS = "status.json"
RUNNING, ENDED, STOPPED, FAILED, GONE = "running", "ended", "stopped", "failed", "gone"
MAX_DETAIL = 2000


@dataclass(frozen=True)
class Status:
    """A run's status.

    Attributes:
        state: ``running``, ``ended`` (as it was meant to), ``stopped`` (by a signal or Ctrl-C), ``failed``, or
            ``gone``: its process has ended without reporting why.
        detail: where it continues, or why it failed; may be empty.
    """

    state: str
    detail: str = ""

    @property
    def over(self) -> bool:
        """Whether the run has finished writing."""
        return self.state != RUNNING


@contextmanager
def telling_status(folder: Path, here: bool, verify: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Write that a run is running, and afterwards how it ended.

    Args:
        folder: the run's folder, which exists.
        here: whether this process writes the status.
        verify: raises if the folder now belongs to another run, whose status is then left alone.
    """
    if not here:
        yield
        return
    _write(folder, Status(RUNNING))
    try:
        yield
    except BaseException as error:
        # What ended the run matters more than failing to record it on a full disk.
        with suppress(OSError, LockLostError):
            verify()
            _write(folder, _status_of(error))
        raise
    verify()
    _write(folder, Status(ENDED))


def read_status(folder: Path) -> Status | None:
    """A run's status; None if it never wrote one.

    Raises:
        ConfigurationError: the file was not written by a run.
    """
    path = folder / STATUS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        status = Status(found["state"], found["detail"])
        process = (found["host"], found["pid"], found["started"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a run's status: {error!r}") from error
    return Status(GONE) if status.state == RUNNING and _is_gone(*process) else status


def _write(folder: Path, status: Status) -> None:
    record = {
        "state": status.state,
        "detail": valid_text(status.detail),
        "host": platform.node(),
        "pid": os.getpid(),
        "started": own_start(),
    }
    write_atomically(folder / STATUS, json.dumps(record, indent=2) + "\n")


def _status_of(error: BaseException) -> Status:
    if isinstance(error, Preempted):
        return Status(STOPPED, f"resume from {error.checkpoint}")
    if isinstance(error, KeyboardInterrupt):
        return Status(STOPPED, "by Ctrl-C")
    return Status(FAILED, f"{type(error).__name__}: {error}"[:MAX_DETAIL])


def _is_gone(host: str, pid: int, started: float) -> bool:
    """Whether a process is known to have ended. That can't be known of another machine's."""
    return host == platform.node() and not process_is_alive(pid, started)
