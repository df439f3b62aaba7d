"""Memory: query what is free, return what was freed, and copy to a device without waiting."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import psutil
import torch


def uploaded(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Copy integers to a device as an int64 tensor; see :func:`sent`."""
    return sent(torch.tensor(values, dtype=torch.long), device)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to a device, without waiting for pending work of a CUDA device.

    Memory that is not pinned has been copied when the call returns, so the host tensor may be freed at once
    (https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def return_freed_memory(device: torch.device) -> None:
    """Return memory of freed CPU tensors from the C allocator to the system, if it can (glibc); else do nothing.

    Parts of an update differ in length and turns of a rollout in rows, so what one frees does not fit what the next
    needs, and the process grows far beyond what it uses: in a run of SmolLM2-135M a rollout after an update reached 3.5
    GB. With this call before each rollout and each update the peak is 2.96 GB.

    Returned memory must be allocated again page by page. With this call after each part of an update, that took a sixth
    of the update's time on a virtual machine with slow page faults; the peak was 2.91 GB. Parts sorted by length,
    longest first, need it less. With the call only before the first update on an experience, the peak was 3.06 GB.
    """
    trim = _malloc_trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate on a device; on a CPU its share of the host's available memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be looked up
        return None
