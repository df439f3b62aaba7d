"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def return_freed_memory(device: torch.device) -> None:
    """Hand back what the C allocator keeps of freed tensors on a CPU, where it can (glibc); else do nothing.

    Parts of an update differ in length and turns of a rollout in rows, so what one leaves does not fit what the next
    needs, and the process grows to far more than it uses. On a run of SmolLM2-135M with a peak of 2.8 GB, without this
    the second rollout, which meets the holes of an update, came to 3.5, and the updates to 3.2.

    What is handed back has to be got anew, page by page: a tenth of an update's time on a virtual machine with slow
    page faults, nothing that shows of a turn's. Tried instead and dropped: to hand back only what the next part does
    not need (peak 3.6); only where a part came to more than any before it (3.2); between forward and backward (3.0).
    """
    trim = _malloc_trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none to be looked up
        return None
