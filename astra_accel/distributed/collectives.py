"""What processes exchange: everybody's results and errors, in one go."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from astra_accel.distributed.exchange import gather_object

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process failed; its own error says why."""


_waits: list[float] = []


def take_waited() -> float:
    """Seconds since the last call that this process spent in exchanges: waiting for the slowest, but for little."""
    waited = math.fsum(_waits)
    _waits.clear()
    return waited


def on_every_rank(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """Do something on each process and give all of them everybody's result, in the order of ranks.

    If it fails on any process it fails on all of them, so that none is left waiting for the others: the process
    that failed raises its own error, the others a :class:`RankError`.
    """
    if accelerator.num_processes == 1:
        return [work()]
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    own = (result, None if error is None else f"{type(error).__name__}: {error}")
    started = time.perf_counter()
    try:
        outcomes: list[tuple[Any, str | None]] = gather_object([own])
    except RuntimeError:  # the others are gone, which matters less than why this one failed
        if error is None:
            raise
    _waits.append(time.perf_counter() - started)
    if error is not None:
        raise error
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            raise RankError(f"process {rank} failed with {failure}")
    return [outcome for outcome, _ in outcomes]


def end_together(accelerator: Accelerator) -> None:
    """Take leave of the other processes, before a script ends.

    gloo's threads need Python to let go of what was sent last. A script that ends right behind an exchange keeps Python
    to itself while it takes the process group down, and both wait for ever; waiting at a barrier lets them have it.
    """
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


@contextmanager
def naming_lost_processes(timeout: float) -> Iterator[None]:
    """Say in words when a process can't reach the others any more.

    So it is on CPUs, and with NCCL in exchanges (:mod:`astra_accel.distributed.exchange`), where processes wait for
    the slowest rollout. What NCCL itself moves, gradients and gathered weights, ends otherwise: after ``timeout`` its
    watchdog prints which collective it waited for and aborts the process (SIGABRT), before Python hears of it. The
    last checkpoint is whole then too.

    Raises:
        RankError: one of them died, or did not answer for ``timeout`` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_the_network(error):
            raise
        raise RankError(
            f"process {os.environ.get('RANK', '0')} lost the others: one of them died, or did not answer for "
            f"{timeout:g} s (training.timeout). Its own error says why; the last checkpoint is whole"
        ) from error


def _is_of_the_network(error: RuntimeError) -> bool:
    # NCCL's errors have classes; gloo's are plain, with the place in its sources where they come from.
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do something on the main process alone and give all its result; if it fails there, it fails everywhere."""
    part: Callable[[], Any] = work if accelerator.is_main_process else lambda: None
    result: T = on_every_rank(accelerator, part)[0]
    return result
