"""What a machine has: processor, memory, disk, and the devices that torch finds."""

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
    """What a process computes on.

    Attributes:
        name: ``cuda:0``, with the maker's name for it where there is one.
        memory_gb, free_gb: of its own memory; None where that can't be asked.
        bf16: whether it computes in bfloat16 by itself.
    """

    name: str
    memory_gb: float | None
    free_gb: float | None
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """The machine of this process.

    Attributes:
        system: operating system and processor.
        cores: those that this process may run on.
        threads: how many torch computes with; None without torch.
        memory_gb, free_gb: main memory; None where the system does not tell.
        disk_gb: free where runs are written.
        kind: of the devices: ``cpu``, ``cuda``, …; None without torch.
        devices: each of them.
        problem: why torch can't be asked; None where it can.
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
    """The machine, with the disk on which a folder is or will be."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": _of_memory("SC_PHYS_PAGES"),
        "free_gb": _available_memory(),
        "disk_gb": shutil.disk_usage(existing(folder)).free / GB,
    }
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that is missing or of another machine is an OSError
        return Machine(**facts, problem=f"torch can't be imported: {error}")
    kind, devices = _devices(torch)
    return Machine(**facts, threads=torch.get_num_threads(), kind=kind, devices=devices)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that there is."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _devices(torch: Any) -> tuple[str, list[Device]]:
    if not torch.accelerator.is_available():
        # On a CPU autocast in bf16 works everywhere; whether it is quick is another matter.
        return "cpu", [Device("cpu", None, None, bf16=True)]
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
    """What could be had without swapping: Linux tells more than its free pages, which hold files as well."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return _of_memory("SC_AVPHYS_PAGES")
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 / GB if "MemAvailable" in sizes else None
