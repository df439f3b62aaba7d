"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def return_freed_memory() -> None:
    """Hand back what the C allocator keeps of freed tensors on a CPU, where it can (glibc); else do nothing.

    Parts of an update differ in length, so the activations of one leave holes that those of the next don't fit, and
    the process grows to twice what it uses. Handing the holes back after each part costs some percent of its time. To
    keep as much as the next part needs, and hand back the rest, was tried: a run with a peak of 3.2 GB had one of 3.6.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or none to be looked up
        return None
