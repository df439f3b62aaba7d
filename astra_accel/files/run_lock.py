"""One writer at a time in a folder, even if several hosts share the file system.

The lock is a file in the folder, created exclusively. It names its holder, and a thread of the holder increments a
number in it, its heartbeat. Whether a holder is alive is judged without comparing clocks:

- On this machine (same boot, same process table): whether the process exists. A stopped one still does.
- On another machine: whether the heartbeat changes while it is watched for ``stale_seconds``.

A lock whose holder is gone is renamed away, by the one run that has claimed it first: of several that want it, a slow
one must not rename the lock of a quicker one, which others would take for a free folder. A holder wrongly considered
dead (e.g. on a suspended machine) finds that the file is no longer its own, and stops writing: :meth:`RunLock.verify`.
We don't use locks of the operating system, since on many cluster file systems they are missing or local to one host
(Lustre without ``flock``, NFS without ``lockd``).
"""

from __future__ import annotations

import atexit
import errno
import getpass
import hashlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from astra_accel.errors import ConfigurationError
from astra_accel.files.folders import made_folders, unwritable
from astra_accel.files.process_table import machine, own_start, process_is_alive

logger = logging.getLogger(__name__)

LOCK = "run.lock"
BEAT_SECONDS, STALE_SECONDS = 10.0, 90.0
"""Seconds between two heartbeats; seconds without one after which a run on another machine counts as dead."""
MISSING_SECONDS = 1.0
"""How long a lock file may be missing before its holder considers it gone: file servers are sometimes slow."""
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "JOB_ID")
"""The environment variables in which schedulers name the job."""


class FolderInUseError(ConfigurationError):
    """Another run writes to the folder; the message names it."""


class LockLostError(RuntimeError):
    """The folder was taken over by another run, or its lock file was deleted: nothing more may be written."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Attributes:
        token: identifies this acquisition of the lock.
        machine: boot and process table, within which a process number is unique.
        started: when the process started, in seconds since the epoch by its machine's clock.
        since: when it acquired the lock, as readable text.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: float
    user: str
    job: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        jobs = [f"{name} {os.environ[name]}" for name in JOBS if os.environ.get(name)]
        return cls(
            token=uuid.uuid4().hex,
            host=platform.node(),
            machine=machine(),
            pid=os.getpid(),
            started=own_start(),
            user=_user(),
            job=jobs[0] if jobs else "",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def is_alive(self) -> bool:
        """Whether the process exists. Known only on its own machine."""
        return process_is_alive(self.pid, self.started)

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host} (user {self.user}{job}) since {self.since}"


class RunLock:
    """The lock of a folder. Only one of a run's processes takes it.

    Args:
        folder: the folder to write to; it is made if it doesn't exist.
        field: the setting that named it, for messages.
        beat_seconds: the seconds between two heartbeats.
        stale_seconds: how long another machine's heartbeat is watched before its run counts as dead.
    """

    def __init__(
        self,
        folder: Path,
        field: str = "training.output_dir",
        *,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self.folder, self.path, self._field = folder, folder / LOCK, field
        self._beat_seconds, self._stale_seconds = beat_seconds, stale_seconds
        self._holder: Holder | None = None
        self._made: list[Path] = []
        self._watched = _Watched()
        self._claimed: dict[Path, float] = {}  # since when other runs are seen to claim a dead run's lock
        self._ended = threading.Event()

    @property
    def held(self) -> bool:
        """Whether this object took the lock and has not released it."""
        return self._holder is not None

    def acquire(self) -> None:
        """Take the lock. If a run on another machine held it, waits to see whether that run is alive.

        Raises:
            FolderInUseError: another run holds it; names the run.
            ConfigurationError: the folder can't be written to; names the field.
        """
        while (wait := self.attempt()) is not None:
            time.sleep(wait)

    def attempt(self) -> float | None:
        """Take the lock if that can be decided now (returns None); else return the seconds after which to try again.

        Raises the errors of :meth:`acquire`.
        """
        try:
            return None if self._create() else self._judge()
        except OSError as error:
            raise unwritable(self.folder, self._field, error) from error

    def check_free(self) -> None:
        """Check, without waiting, that no run is certain to be writing to the folder now.

        Raises:
            FolderInUseError: there is such a run, on this machine.
        """
        holder = _parsed(_read(self.path) or "")
        if holder is not None and holder.machine == machine() and holder.is_alive:
            raise self._in_use(str(holder))

    def verify(self) -> None:
        """Check that the lock is still this object's, before writing. Does nothing if it never was.

        Raises:
            LockLostError: another run has taken it over, or the file is gone.
        """
        if self._holder is None:
            return
        end = time.monotonic() + MISSING_SECONDS
        while (content := _read(self.path)) is None and time.monotonic() < end:
            time.sleep(MISSING_SECONDS / 10)
        holder = _parsed(content or "")
        if holder is None or holder.token != self._holder.token:
            now = "its lock file is gone" if holder is None else f"{holder} has taken it over"
            raise LockLostError(
                f"this run no longer holds {self.folder}: {now}. It stops before it writes more, since two runs would "
                f"mix their files; the last checkpoint is whole"
            )

    def release(self) -> None:
        """Release the lock, and remove the folder if it was made for the lock and is empty."""
        if self._holder is None or self._holder.pid != os.getpid():
            return
        self._ended.set()
        holder, self._holder = self._holder, None
        atexit.unregister(self.release)
        try:
            found = _parsed(_read(self.path) or "")
            if found is not None and found.token == holder.token:
                self.path.unlink()
            for folder in reversed(self._made):
                folder.rmdir()
        except OSError:
            pass  # Something else was written there, or the disk is gone: no run waits for this lock forever.

    def _create(self) -> bool:
        """Try to make the lock file, which then belongs to this object; returns whether that worked."""
        made = made_folders(self.folder)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        holder = Holder.here()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_content(holder))
                file.flush()
                os.fsync(file.fileno())  # a full disk or an exceeded quota fails here at the latest
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        self._holder, self._made = holder, self._made or made
        self._ended = threading.Event()
        atexit.register(self.release)
        threading.Thread(target=self._beat, args=(holder, self._ended), name="run lock", daemon=True).start()
        return True

    def _judge(self) -> float:
        """The seconds until the next attempt at a lock that another run has, or had.

        Raises:
            FolderInUseError: that run is alive.
        """
        looked = time.monotonic()  # before reading: what is read is at least as new
        content = _read(self.path)
        if content is None:
            return 0.0
        holder = _parsed(content)
        if holder is not None and holder.machine == machine():
            if holder.is_alive:
                raise self._in_use(str(holder))
            return self._take_away(content)
        if self._watched.changes(content, looked, self._beat_seconds):
            raise self._in_use(str(holder or "another run"))
        if self._watched.seconds >= self._stale_seconds:
            if (wait := self._take_away(content)) == 0.0:
                logger.warning("%s: the run of %s has shown no life; taking the folder over", self.folder, holder)
            return wait
        if self._watched.is_new:
            logger.warning(
                "%s is locked by %s. Waiting up to %g s for a sign of life of it; without one, this run takes over",
                self.folder,
                holder or "a run that did not say who it is",
                self._stale_seconds,
            )
        return self._beat_seconds / 4

    def _in_use(self, holder: str) -> FolderInUseError:
        return FolderInUseError(
            f"{self._field} {self.folder} is in use: {holder} writes to it ({self.path}). Expected one run at a time: "
            f"wait for that one, stop it, or choose another folder"
        )

    def _take_away(self, content: str) -> float:
        """Rename a dead run's lock out of the way, or let another run do so; the seconds until the next attempt."""
        claim = self.path.with_name(f".{LOCK}.{hashlib.sha256(content.encode()).hexdigest()}")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            self._claimed.setdefault(claim, time.monotonic())
            if time.monotonic() - self._claimed[claim] >= self._stale_seconds:  # that run died, too
                claim.unlink(missing_ok=True)
                del self._claimed[claim]  # the next one is another run's
            return self._beat_seconds / 4
        try:
            if _read(self.path) == content:
                self._rename_away(content)
        finally:
            claim.unlink(missing_ok=True)
        self._watched = _Watched()
        return 0.0

    def _rename_away(self, content: str) -> None:
        """Rename a lock out of the way. If it was no longer what it was, put it back: its run is alive after all."""
        aside = self.path.with_name(f".{LOCK}.{uuid.uuid4().hex}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != content:
            try:
                os.link(aside, self.path)
            except FileExistsError:
                pass  # a third run holds it by now
            except OSError:  # a file system without links
                os.rename(aside, self.path)
        aside.unlink(missing_ok=True)

    def _beat(self, holder: Holder, ended: threading.Event) -> None:
        """Increment the heartbeat in the file while it is this holder's. Communicates with no other process."""
        count = 0
        while not ended.wait(self._beat_seconds):
            count += 1
            try:
                with self.path.open("r+b") as file:
                    found = _parsed(file.read().decode("utf-8", "replace"))
                    if found is None or found.token != holder.token:
                        return  # `verify` reports it
                    file.seek(len(BEAT_BEFORE))
                    file.write(_digits(count))
            except OSError:
                continue  # The disk may come back. If it stays away too long, another run takes over, and we notice.


class _Watched:
    """The last content of another machine's lock, and for how many seconds it has been unchanged."""

    def __init__(self) -> None:
        self.seconds, self.is_new = 0.0, True
        self._content: str | None = None
        self._last = 0.0

    def changes(self, content: str, looked: float, beat_seconds: float) -> bool:
        """Record the lock's content; returns whether it has changed.

        A gap between two checks counts as one heartbeat at most: if this process was stopped meanwhile, or the file
        server did not answer, the lock was not watched.
        """
        if self._content is None:
            self._content, self._last = content, time.monotonic()
            return False
        self.is_new = False
        self.seconds += max(0.0, min(looked - self._last, beat_seconds))
        self._last = looked
        return content != self._content


def check_nesting(folder: Path, field: str, parts: tuple[str, ...] = ()) -> None:
    """Reject a folder if another run writes around it, or inside one of its parts, and would be mixed with it.

    Args:
        folder: an output folder.
        field: the setting that named it.
        parts: the names in it that a new run may delete.

    Raises:
        FolderInUseError: there is such a run; says where.
    """
    resolved = Path(os.path.realpath(folder))
    for other in (*resolved.parents, *(resolved / part for part in parts)):
        try:
            content = _read(other / LOCK)
        except OSError:
            continue  # a folder that we may not read
        holder = _parsed(content or "")
        if content is None or (holder is not None and holder.machine == machine() and not holder.is_alive):
            continue
        raise FolderInUseError(
            f"{field} {folder} and {other} lie inside one another, and {holder or 'another run'} writes to the latter "
            f"({other / LOCK}); expected a folder apart from that of another run"
        )


BEAT_BEFORE, BEAT_DIGITS = b'{"beat": "', 12
"""The heartbeat has a fixed place and width, so that it can be overwritten without touching the rest."""


def _content(holder: Holder) -> bytes:
    rest = json.dumps(asdict(holder), indent=1)
    return BEAT_BEFORE + _digits(0) + b'",\n' + rest[rest.index("\n") + 1 :].encode() + b"\n"


def _digits(count: int) -> bytes:
    return f"{count:0{BEAT_DIGITS}d}".encode()


def _read(path: Path) -> str | None:
    """The content of a lock file; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # NFS: it was replaced while we read it
            return None
        raise


def _parsed(content: str) -> Holder | None:
    """The holder that a lock file names; None if its content is not readable (yet)."""
    try:
        values = json.loads(content)
        return Holder(**{name: values[name] for name in Holder.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
