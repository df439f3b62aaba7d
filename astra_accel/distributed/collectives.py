"""Exchanges between processes: the results and errors of all in one exchange."""

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

from astra_accel.errors import Interrupted
from astra_accel.files.run_lock import RunLock

_made: dict[str, Any] = {}
"""The group for exchanges, and the default group it was made for: a process may get another one later."""


def gather_object(own: list[Any]) -> list[Any]:
    """The items of all processes' lists, in rank order. All processes must call it.

    Raises:
        RuntimeError: a process is gone, or did not answer within the default group's timeout; or no group over host
            memory can be made.
    """
    group = _group_on_hosts()
    if group is None:
        return gather_over_default(own)
    results: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(results, own, group=group)
    return [item for result in results for item in result]


def _group_on_hosts() -> Any:
    """A gloo group of all processes, if the default group takes only device tensors; made once."""
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
                "processes can't reach one another over gloo, which exchanges use besides NCCL; set "
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
    """Seconds spent in exchanges since the last call: almost all of it waiting for the slowest process."""
    waited = math.fsum(_waits)
    _waits.clear()
    return waited


def gather_results(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """Do something on each process and return all processes' results on each, in rank order.

    If it fails on any process it fails on all of them, so that none is left waiting for the others: the process
    that failed raises its own error, the others a :class:`RankError`. If processes were only interrupted, all raise the
    same interruption.
    """
    if accelerator.num_processes == 1:
        return [work()]
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failure = None if error is None else f"{type(error).__name__}: {error}"
    own = (result, error if isinstance(error, Interrupted) else failure)
    started = time.perf_counter()
    try:
        outcomes: list[tuple[Any, str | Interrupted | None]] = gather_object([own])
    except RuntimeError:  # the others are gone, but why this one failed matters more
        if error is None:
            raise
    _waits.append(time.perf_counter() - started)
    if error is not None and not isinstance(error, Interrupted):
        raise error
    for rank, (_, found) in enumerate(outcomes):
        if isinstance(found, str):
            raise RankError(f"process {rank} failed with {found}")
    for _, found in outcomes:
        if isinstance(found, Interrupted):
            raise found
    return [outcome for outcome, _ in outcomes]


def end_together(accelerator: Accelerator) -> None:
    """Wait for the other processes before a script ends.

    gloo's threads need Python's lock (GIL) to release what was sent last. A script that ends right after an exchange
    holds it while it destroys the process group, so both wait forever; waiting at a barrier releases it.
    """
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


@contextmanager
def translate_collective_errors(timeout: float) -> Iterator[None]:
    """Raise a readable error when a process can no longer reach the others.

    This covers CPUs and, with NCCL, exchanges (:mod:`astra_accel.distributed.collectives`), where processes wait for
    the slowest rollout. NCCL's own transfers, gradients and gathered weights, fail differently: after ``timeout`` its
    watchdog prints which collective it waited for and aborts the process (SIGABRT) before Python notices. The last
    checkpoint is still whole.

    Raises:
        RankError: another process died, or did not answer for ``timeout`` seconds.
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
    # NCCL's errors have classes; gloo's are plain, but name their place in its sources.
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do something on the main process only and return its result on all; if it fails there, it fails everywhere."""
    part: Callable[[], Any] = work if accelerator.is_main_process else lambda: None
    result: T = gather_results(accelerator, part)[0]
    return result


@contextmanager
def holding(accelerator: Accelerator, lock: RunLock) -> Iterator[RunLock]:
    """A context in which the main process holds the lock of a folder.

    All processes must enter it; while the main one watches another run's lock, no other blocks for long.

    Raises:
        FolderInUseError: another run writes to the folder; names it.
        ConfigurationError: the folder can't be written to.
    """
    try:
        while (wait := on_main(accelerator, lock.attempt)) is not None:
            time.sleep(wait)
        yield lock
    finally:
        lock.release()
