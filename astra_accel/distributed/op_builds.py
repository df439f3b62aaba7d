"""Builds DeepSpeed's operations, which torch compiles at first use under a lock that a killed build leaves behind.

The lock is a file. torch waits for it to disappear, silently and forever, whichever process made it. Here one process
per machine builds while the others wait for it; what they wait for is logged; and a lock that certainly no process
holds is removed. If that can't be known, since another machine or container may hold it, the user must decide.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astra_accel.files.process_table import machine, process_exists

logger = logging.getLogger(__name__)

LOCK = "lock"
"""torch's lock, in the folder of the operation."""
OWN_LOCK = "astra_accel.lock"
"""Our lock beside it: one of the operating system, which releases it when its holder ends."""
RECORD = "astra_accel.build"
"""Names the process that builds; a killed build leaves it beside torch's lock."""
BUILDERS = {"adam": "CPUAdamBuilder", "adamw": "CPUAdamBuilder", "adagrad": "CPUAdagradBuilder"}
"""DeepSpeed's builders of optimizers for the host, by ``training.optimizer``."""
TELL_EVERY = 30.0
PATIENCE = 1800.0
"""Seconds to wait for a lock with an unknown holder; a build takes one to ten minutes."""

COMPILERS = ("ninja", "c++", "g++", "gcc", "cc1", "clang", "nvcc", "cicc", "ptxas", "as", "ld", "collect2")
"""Prefixes of the names of processes that keep running for a while after the build that started them was killed."""
LOCAL_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay"}
PRIVATE_FILE_SYSTEMS = {"overlay"}
"""File systems that belong to one container."""
FIRST_PROCESS_TABLE = 0xEFFFFFFC
"""The inode of the process table with all processes of a machine (Linux's ``PROC_PID_INIT_INO``)."""


class BuildLockError(RuntimeError):
    """A lock that doesn't disappear and whose holder is unknown."""


@dataclass(frozen=True)
class _Maker:
    """A process that builds, or was killed while building.

    Attributes:
        host: the host's name, for messages.
        machine: its boot and its process table, within which a process number is unique.
        pid: the process number.
    """

    host: str
    machine: str
    pid: int

    @classmethod
    def here(cls) -> _Maker:
        """This process."""
        return cls(platform.node(), machine(), os.getpid())

    @classmethod
    def read(cls, file: Path) -> _Maker | None:
        """The process that a file names; None if there is no file, or it is cut off."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended: it ran on this machine and is gone."""
        return self.machine == machine() and not process_exists(self.pid)


@dataclass(frozen=True)
class BuildLock:
    """torch's lock on the build of an operation.

    Attributes:
        path: the lock file.
        seconds: the seconds since it was made.
        holder: a process of this machine that builds; None if there is none.
        abandoned: whether it is certain that no process on any machine holds it.
        maker: the process that made it, if recorded.
    """

    path: Path
    seconds: float
    holder: int | None
    abandoned: bool
    maker: _Maker | None = None

    @property
    def command(self) -> str:
        """The shell command that removes it."""
        return f"rm '{self.path}'"

    def __str__(self) -> str:
        if self.holder is not None:
            who = f"held by process {self.holder}"
        elif self.abandoned:
            who = "left by a build that was killed"
        elif self.maker is not None:
            who = f"made by process {self.maker.pid} on {self.maker.host}, which may be building"
        else:
            who = "held by no process that can be seen here; another machine or container may be building"
        return f"{self.path}, {self.seconds:.0f} s old, {who}"


def find_lock(path: Path) -> BuildLock | None:
    """A lock and its holder; None if there is no lock."""
    try:
        status = path.stat()
    except OSError:
        return None
    holder, maker = _builder(path, status), _Maker.read(path.parent / RECORD)
    mine = sys.platform == "linux" and os.geteuid() in (0, status.st_uid)  # others' processes show no open files
    dead = (mine and _all_is_seen(path)) or (maker is not None and maker.is_dead)
    return BuildLock(path, max(0.0, time.time() - status.st_mtime), holder, holder is None and dead, maker)


def find_locks() -> list[BuildLock]:
    """The locks of all operations ever built here."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    files = Path(root).glob(f"*/{LOCK}") if root else cache.glob(f"*/*/{LOCK}")
    return [lock for file in sorted(files) if (lock := find_lock(file)) is not None]


def build_for_offload(optimizer: str) -> None:
    """Build the operation that steps an optimizer on the host, before DeepSpeed needs it.

    Every process must call it. One process per machine builds, which takes a minute or more the first time.

    Args:
        optimizer: one of :data:`BUILDERS`.

    Raises:
        BuildLockError: see :func:`wait_for_lock`.
        RuntimeError: it can't be built: a compiler, ninja or a header is missing, or the compiler failed.
    """
    from deepspeed.ops import op_builder

    _build(getattr(op_builder, BUILDERS[optimizer])())


def build_for_cpu_processes() -> None:
    """Build the operation by which CPU processes exchange tensors, before DeepSpeed needs it. All must call it.

    Raises the errors of :func:`build_for_offload`.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and __compatible_ops__.get(builder.name, False):
        _build(builder)


def _build(builder: Any) -> None:
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import _get_build_directory

    if not installed_ops.get(builder.name, False):
        folder = Path(_get_build_directory(builder.name, verbose=False))
        build_alone(builder.name, folder, builder.load)


def build_alone(name: str, folder: Path, load: Callable[[], Any]) -> None:
    """Load an operation, building it if necessary, while no other process does.

    Raises:
        BuildLockError: see :func:`wait_for_lock`.
    """
    with _own_lock(name, folder):
        wait_for_lock(name, folder / LOCK)
        if (folder / f"{name}.so").exists():
            said = f"loading {name} from {folder} takes long"
        else:
            said = f"DeepSpeed builds {name} in {folder}, once; a minute or more"
            logger.info("%s", said)
        with _telling(f"{said}. If nothing is compiled, end this and delete {folder / LOCK}"), _recorded(folder):
            load()


def wait_for_lock(name: str, path: Path, patience: float = PATIENCE) -> None:
    """Wait while another process builds; remove the lock of a build that is certainly dead.

    Raises:
        BuildLockError: the lock is still there after ``patience`` seconds, and no process is known to hold it.
    """
    started, told = time.monotonic(), -TELL_EVERY
    while (lock := find_lock(path)) is not None:
        waited = time.monotonic() - started
        if lock.abandoned:
            logger.warning("removing a lock on %s that nobody holds: %s", name, lock)
            path.unlink(missing_ok=True)
            path.with_name(RECORD).unlink(missing_ok=True)
            return
        if lock.holder is None and waited > patience:
            raise BuildLockError(
                f"DeepSpeed's {name} is locked for {waited:.0f} s now: {lock}. If none is, delete it: {lock.command}"
            )
        if waited - told >= TELL_EVERY:
            logger.warning("waiting for a build of %s: %s", name, lock)
            told = waited
        time.sleep(0.2)


@contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    """Record which process builds, for processes that find its lock if it is killed."""
    file = folder / RECORD
    with suppress(OSError):  # torch can't write there either
        file.write_text(json.dumps(asdict(_Maker.here())), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()


@contextmanager
def _own_lock(name: str, folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, among those that use this lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / OWN_LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            with _telling(f"waiting for another process that builds {name} in {folder}"):
                lock.acquire(poll_interval=0.2)
    except (OSError, NotImplementedError) as error:  # a file system without locks: torch's lock must do
        logger.info("%s can't be locked (%s)", folder, error)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _telling(text: str) -> Iterator[None]:
    """Log a text every half minute that the block takes."""
    ended = threading.Event()

    def tell() -> None:
        started = time.monotonic()
        while not ended.wait(TELL_EVERY):
            logger.warning("%s (%.0f s so far)", text, time.monotonic() - started)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _builder(path: Path, status: os.stat_result) -> int | None:
    """A process that has the lock open, as torch has while it builds, or that compiles in its folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if _has_open(process, status) or _compiles_in(process, path.parent):
                return int(process.name)
        except OSError:  # it has ended, or belongs to another user
            continue
    return None


def _has_open(process: Path, status: os.stat_result) -> bool:
    for file in process.joinpath("fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.path.samestat(file.stat(), status):
                return True
    return False


def _compiles_in(process: Path, folder: Path) -> bool:
    name = process.joinpath("comm").read_text(encoding="utf-8", errors="replace")
    return name.startswith(COMPILERS) and process.joinpath("cwd").resolve(strict=True) == folder.resolve()


def _all_is_seen(path: Path) -> bool:
    """Whether every process that could use the file is visible here."""
    kind = _file_system(path.resolve())
    if kind in PRIVATE_FILE_SYSTEMS:
        return True
    return kind in LOCAL_FILE_SYSTEMS and Path("/proc/self/ns/pid").stat().st_ino == FIRST_PROCESS_TABLE


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = fields.split()[4].replace("\\040", " ")
        if path.is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, rest.split()[0]
    return kind
