"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from astra_accel import ASTSampler, HFASTSystem, ProfanityScorer
from astra_accel.models import memory
from astra_accel.models.memory import return_freed_memory

HOLES = """
import os, psutil, torch
from astra_accel.models.memory import return_freed_memory

process = psutil.Process(os.getpid())
blocks = [torch.ones(16_384) for _ in range(4000)]  # 64 KiB each: small enough for the heap
kept = blocks[::8]
before = process.memory_info().rss
del blocks
return_freed_memory(torch.device("cpu"))
assert all(bool(block.eq(1).all()) for block in kept)
print(before - process.memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_holes_between_what_is_kept_are_given_back() -> None:
    """In a process of its own, whose memory nothing else changes."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150e6  # of 229 MB


def test_an_accelerator_has_an_allocator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: calls.append)
    return_freed_memory(torch.device("cuda"))
    assert calls == []
    return_freed_memory(torch.device("cpu"))
    assert calls == [0]


def test_a_rollout_gives_back_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: calls.append)
    system = HFASTSystem("tiny", "tiny", scorer=ProfanityScorer())
    ASTSampler(system, ["Hello."], 2, 2).rollout_many([0])
    assert calls == [0]
