"""A machine's resources: processor, memory, disk, and the devices that torch finds."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GB = 1e9


@dataclass(frozen=True)
class Device:
    """A device that a process computes on.

    Attributes:
        name: ``cuda:0``, with the manufacturer's name if there is one.
        memory_gb, free_gb: its own memory, in total and free; None if unknown.
        bf16: whether it has instructions for products in bfloat16.
    """

    name: str
    memory_gb: float | None
    free_gb: float | None
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """The machine of this process.

    Attributes:
        system: the operating system and processor.
        cores: the number of cores that this process may run on.
        threads: the number of threads that torch uses; None without torch.
        memory_gb, free_gb: main memory, in total and free; None if the system does not report it.
        disk_gb: the free disk space where runs are written.
        kind: the kind of the devices: ``cpu``, ``cuda``, …; None without torch.
        devices: the devices.
        problem: why torch can't be imported; None if it can.
    """

    system: str
    cores: int
    memory_gb: float | None
    free_gb: float | None
    disk_gb: float
    threads: int | None = None
    kind: str | None = None
    devices: list[Device] = field(default_factory=list)
    problem: str | None = None


def look_at_machine(folder: Path) -> Machine:
    """Examine the machine, with the disk on which a folder is or will be."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": _of_memory("SC_PHYS_PAGES"),
        "free_gb": _available_memory(),
        "disk_gb": shutil.disk_usage(existing(folder)).free / GB,
    }
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that is missing or for another machine raises OSError
        return Machine(**facts, problem=f"torch can't be imported: {error}")
    kind, devices = _devices(torch)
    return Machine(**facts, threads=torch.get_num_threads(), kind=kind, devices=devices)


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _devices(torch: Any) -> tuple[str, list[Device]]:
    if not torch.accelerator.is_available():
        # As `computes_in_bf16` in `models/loading/precision.py`, which needs more than Python and torch.
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return "cpu", [Device("cpu", None, None, bf16=any(getattr(torch.cpu, name, bool)() for name in asked))]
    kind = torch.accelerator.current_accelerator().type
    count = torch.accelerator.device_count()
    if kind != "cuda":
        return kind, [Device(f"{kind}:{index}", None, None, bf16=kind != "mps") for index in range(count)]
    return kind, [_cuda_device(torch, index) for index in range(count)]


def _cuda_device(torch: Any, index: int) -> Device:
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(f"cuda:{index} ({torch.cuda.get_device_name(index)})", total / GB, free / GB, bf16)


def _of_memory(name: str) -> float | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / GB
    except (AttributeError, ValueError, OSError):
        return None


def _available_memory() -> float | None:
    """The memory available without swapping: on Linux more than the free pages, since others only cache files."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return _of_memory("SC_AVPHYS_PAGES")
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 / GB if "MemAvailable" in sizes else None
