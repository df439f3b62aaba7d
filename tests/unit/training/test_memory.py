"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import os

import psutil
import pytest
import torch

from astra_accel.training.memory import return_freed_memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_holes_between_what_is_kept_are_given_back() -> None:
    process = psutil.Process(os.getpid())
    blocks = [torch.ones(16_384) for _ in range(4000)]  # 64 KiB each: small enough for the heap
    kept = blocks[::8]
    before = process.memory_info().rss
    del blocks
    return_freed_memory()
    assert before - process.memory_info().rss > 150e6  # of 229 MB
    assert all(bool(block.eq(1).all()) for block in kept)
