"""Runs a function on several real processes that talk over gloo, and brings back what each returns."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

PRELOADED = ["tests.helpers.runs", "transformers.models.llama.modeling_llama", "peft"]
"""What every process needs, and takes seconds to import."""

TIMEOUT = float(os.environ.get("PROCESS_TIMEOUT", "600"))
"""Seconds: enough for a machine that is busy with other things, and to compile DeepSpeed's operations there."""


class ProcessFailure(AssertionError):
    """A process raised, died or took too long."""


def run_processes(
    count: int, body: Callable[..., Any], *args: Any, timeout: float = TIMEOUT, forked: bool = True
) -> list[Any]:
    """Call ``body(*args)`` on ``count`` processes of one world; the results in the order of ranks.

    Args:
        count: processes. One too is started, so that runs of different counts start alike. Each is forked from a
            server that has imported what they need and done nothing else, where the system has fork.
        body: a function of a module that the processes can import, as are its arguments and results picklable.
        timeout: seconds for each process to answer.
        forked: False starts new interpreters, whose libraries read the environment as it is now when they are imported.

    Raises:
        ProcessFailure: with the traceback of every process that failed, the first rank's first.
    """
    context = _context(forked)
    port = free_port()
    processes, pipes = [], []
    for rank in range(count):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sender, rank, count, port, dict(os.environ), body, args))
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    try:
        answers = [_receive(pipe, timeout) for pipe in pipes]
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
    failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(answers) if failure is not None]
    if failures:
        raise ProcessFailure("\n".join(failures))
    return [result for result, _ in answers]


def _context(forked: bool) -> Any:
    if not forked or "forkserver" not in torch.multiprocessing.get_all_start_methods():
        return torch.multiprocessing.get_context("spawn")
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _receive(pipe: Connection, timeout: float) -> tuple[Any, str | None]:
    if not pipe.poll(timeout):
        return None, f"no answer within {timeout} s"
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None, "died without an answer"


def _work(
    sender: Connection,
    rank: int,
    count: int,
    port: int,
    environment: dict[str, str],
    body: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()  # the server's is that of an earlier test
    os.environ.update(environment)
    if count > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    torch.set_num_threads(1)
    try:
        # Plain pickles: multiprocessing's own would hand over tensors by files that go when this process ends.
        answer = pickle.dumps((body(*args), None))
    except BaseException:
        answer = pickle.dumps((None, traceback.format_exc()))
    sender.send_bytes(answer)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
