"""Objects between processes: over the default group on CPUs, and over gloo beside one for devices alone."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs

from astra_accel.distributed import collectives
from astra_accel.distributed.collectives import RankError, translate_collective_errors
from tests.helpers.processes import ProcessFailure, run_processes


def gather(devices_alone: bool) -> tuple[list[Any], list[Any]]:
    """Two exchanges in a world whose default group passes for one like NCCL's, and the groups that they made."""
    Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=77))])
    if devices_alone:
        collectives._takes_host_memory = lambda group: False  # type: ignore[assignment]
    made, new_group = [], dist.new_group

    def noted(**options: Any) -> Any:
        made.append((options["backend"], options["timeout"].seconds))
        return new_group(**options)

    dist.new_group = noted
    rank = dist.get_rank()
    return [collectives.gather_object([rank, "a"]), collectives.gather_object([rank])], made


@pytest.mark.slow
@pytest.mark.parametrize("devices_alone", [False, True])
def test_everybody_gets_everything_in_the_order_of_ranks(devices_alone: bool) -> None:
    for found, made in run_processes(2, gather, devices_alone):
        assert found == [[0, "a", 1, "a"], [0, 1]]
        assert made == ([("gloo", 77)] if devices_alone else [])


def lose_one() -> str:
    """Process 1 dies before the second exchange; what process 0 is told, and how soon."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    collectives._takes_host_memory = lambda group: False  # type: ignore[assignment]
    collectives.gather_object([1])
    if dist.get_rank() == 1:
        os._exit(1)
    started = time.monotonic()
    try:
        with translate_collective_errors(60):
            collectives.gather_object([2])
    except RankError as error:
        raise AssertionError(f"told after {time.monotonic() - started:.0f} s: {error}") from None
    return "nothing"


def test_a_lost_process_is_named_in_an_exchange_beside_nccl() -> None:
    with pytest.raises(ProcessFailure, match=r"told after [0-9] s: process 0 lost the others: one of them died"):
        run_processes(2, lose_one, timeout=90)


def test_a_group_that_can_not_be_made_says_which_variable_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Any:
        raise RuntimeError("Connection refused [gloo/transport/tcp/pair.cc]")

    monkeypatch.setattr(collectives, "_made", {})
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(collectives, "_takes_host_memory", lambda group: False)
    monkeypatch.setattr(collectives, "_timeout", lambda group: timedelta(seconds=1))
    monkeypatch.setattr(dist, "new_group", refuse)
    with pytest.raises(RuntimeError, match="set GLOO_SOCKET_IFNAME"):
        collectives.gather_object([1])
