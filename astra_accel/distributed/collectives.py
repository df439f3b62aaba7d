"""What processes exchange: everybody's results and errors, in one go."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object as gather_over_default

from astra_accel.files.run_lock import RunLock

_made: dict[str, Any] = {}
"""The group for exchanges, and the default group that it was made beside: a process may come to have another."""


def gather_object(own: list[Any]) -> list[Any]:
    """The items of everybody's list, in the order of ranks; all processes call it.

    Raises:
        RuntimeError: a process is gone, or did not answer in the time of the default group; or no group over host
            memory can be made.
    """
    group = _group_on_hosts()
    if group is None:
        return gather_over_default(own)
    results: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(results, own, group=group)
    return [item for result in results for item in result]


def _group_on_hosts() -> Any:
    """A gloo group of all processes, where the default group takes tensors of devices alone; made once."""
    if not dist.is_initialized():
        return None
    default = dist.group.WORLD
    if _takes_host_memory(default):
        return None
    if "beside" not in _made or _made["default"] is not default:
        try:
            _made.update(default=default, beside=dist.new_group(backend="gloo", timeout=_timeout(default)))
        except RuntimeError as error:
            raise RuntimeError(
                "processes can't reach one another over gloo, which exchanges take beside NCCL; set "
                f"GLOO_SOCKET_IFNAME to the network interface between the machines: {error}"
            ) from error
    return _made["beside"]


def _takes_host_memory(group: Any) -> bool:
    return torch.device("cpu") in group._device_types


def _timeout(group: Any) -> timedelta:
    return group._get_backend(group._device_types[0]).options._timeout


T = TypeVar("T")


class RankError(RuntimeError):
    """Another process failed; its own error says why."""


_waits: list[float] = []


def pop_wait_seconds() -> float:
    """Seconds since the last call that this process spent in exchanges: waiting for the slowest, but for little."""
    waited = math.fsum(_waits)
    _waits.clear()
    return waited


def gather_results(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
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

    gloo's threads need Python to let go of what was sent last. A script that ends right after an exchange keeps Python
    to itself while it takes the process group down, and both wait for ever; waiting at a barrier lets them have it.
    """
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


@contextmanager
def translate_collective_errors(timeout: float) -> Iterator[None]:
    """Say in words when a process can't reach the others any more.

    So it is on CPUs, and with NCCL in exchanges (:mod:`astra_accel.distributed.collectives`), where processes wait for
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
    result: T = gather_results(accelerator, part)[0]
    return result


@contextmanager
def holding(accelerator: Accelerator, lock: RunLock) -> Iterator[RunLock]:
    """A context in which the main process has the lock of a folder.

    All processes together, and while one watches another run's lock none waits long for it.

    Raises:
        FolderInUseError: another run writes to the folder; says which.
        ConfigurationError: the folder can't be written to.
    """
    try:
        while (wait := on_main(accelerator, lock.attempt)) is not None:
            time.sleep(wait)
        yield lock
    finally:
        lock.release()
