"""Which process a number refers to, and whether it still exists.

psutil is imported where it is needed, since `astra-accel doctor` uses this module even if nothing is installed.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

SAME_START = 2.0
"""Seconds by which two readings of a process's start may differ: the system's clock is sometimes adjusted."""


def machine() -> str:
    """The scope of process numbers: this boot of this host, and within it this process table."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = f"{_boot_time():.0f}"
    try:
        table = os.readlink("/proc/self/ns/pid")  # containers of one host have tables of their own
    except OSError:
        table = ""
    return f"{platform.node()} {boot} {table}".strip()


def own_start() -> float:
    """When this process started, in seconds since the epoch by this machine's clock."""
    import psutil

    return float(psutil.Process().create_time())


def process_exists(pid: int) -> bool:
    """Whether some process of this machine has the number, including a zombie."""
    import psutil

    return bool(psutil.pid_exists(pid))


def process_is_alive(pid: int, started: float) -> bool:
    """Whether a process of this machine that started at a given time is still running."""
    import psutil

    try:
        process = psutil.Process(pid)
        # Another process may have the number by now; a zombie has ended too.
        same = abs(process.create_time() - started) <= SAME_START
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _boot_time() -> float:
    import psutil

    return float(psutil.boot_time())
