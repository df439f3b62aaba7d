"""Memory: how much is free, giving back what was freed, and sending to a device without waiting."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import psutil
import torch


def uploaded(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Integers as an int64 tensor on a device, see :func:`sent`."""
    return sent(torch.tensor(values, dtype=torch.long), device)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, without waiting until all that was asked of a CUDA device is done.

    Memory that is not pinned has been copied when the call returns, so that the host's tensor may go at once
    (https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def return_freed_memory(device: torch.device) -> None:
    """Hand back what the C allocator keeps of freed tensors on a CPU, where it can (glibc); else do nothing.

    Parts of an update differ in length and turns of a rollout in rows, so what one leaves does not fit what the next
    needs, and the process grows to far more than it uses: a rollout that meets the holes of an update came to 3.5 GB
    on a run of SmolLM2-135M whose peak is 2.96 with this before each rollout and each update.

    What is handed back has to be got anew, page by page, which took a sixth of an update's time where it was done
    after each of its parts, on a virtual machine with slow page faults; the peak was 2.91. Parts that come in the
    order of their length, the longest first, need it less. Only before the first update on an experience: 3.06.
    """
    trim = _malloc_trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device; on a CPU its part of what all processes of the host may."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none to be looked up
        return None
