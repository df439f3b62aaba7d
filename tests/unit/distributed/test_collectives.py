"""What processes exchange: as one process can show it, and over gloo, also beside a group for devices alone."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed import collectives
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.collectives import RankError, gather_results, on_main, translate_collective_errors
from astra_accel.errors import Interrupted
from tests.helpers.launches import Pretended
from tests.helpers.processes import ProcessFailure, run_processes


class TestGatherResults:
    def others(self, monkeypatch, *outcomes):
        """Lets the exchange bring what the other processes would have sent."""
        sent = []

        def gather(mine):
            sent.extend(mine)
            return [*mine, *outcomes]

        monkeypatch.setattr(collectives, "gather_object", gather)
        return sent

    def test_everybody_gets_everybodys_result(self, monkeypatch):
        self.others(monkeypatch, (2, None), (3, None))

        assert gather_results(Pretended(num_processes=3), lambda: 1) == [1, 2, 3]

    def test_alone_it_is_ones_own(self):
        assert gather_results(make_accelerator(TrainingConfiguration()), lambda: {"a": 1}) == [{"a": 1}]

    def test_alone_an_error_is_raised_as_it_was(self):
        with pytest.raises(ZeroDivisionError):
            gather_results(make_accelerator(TrainingConfiguration()), lambda: 1 / 0)

    def test_an_error_is_raised_as_it_was_once_the_others_know(self, monkeypatch):
        sent = self.others(monkeypatch)
        error = OSError("disk full")

        def fail():
            raise error

        with pytest.raises(OSError, match="disk full") as caught:
            gather_results(Pretended(num_processes=3), fail)

        assert caught.value is error
        assert sent == [(None, "OSError: disk full")]

    def test_the_error_of_another_process_is_named_with_its_number(self, monkeypatch):
        self.others(monkeypatch, (2, None), (None, "OSError: disk full"))

        with pytest.raises(RankError, match="process 2 failed with OSError: disk full"):
            gather_results(Pretended(num_processes=3), lambda: 1)

    def test_an_interruption_of_one_process_is_that_of_all(self, monkeypatch):
        interruption = Interrupted("the endpoint is gone")
        self.others(monkeypatch, (2, None), (None, interruption))

        with pytest.raises(Interrupted, match="the endpoint is gone"):
            gather_results(Pretended(num_processes=3), lambda: 1)

    def test_an_error_of_one_process_matters_more_than_an_interruption_of_another(self, monkeypatch):
        self.others(monkeypatch, (None, "OSError: disk full"), (None, None))

        def interrupted():
            raise Interrupted("the endpoint is gone")

        with pytest.raises(RankError, match="process 1 failed with OSError: disk full"):
            gather_results(Pretended(num_processes=3), interrupted)

    def test_only_the_main_process_does_what_is_its_business(self, monkeypatch):
        self.others(monkeypatch, (None, None), (None, None))
        done = []

        on_main(Pretended(num_processes=3, is_main_process=False), lambda: done.append("other"))
        on_main(Pretended(num_processes=3, is_main_process=True), lambda: done.append("main"))

        assert done == ["main"]

    def test_what_the_main_process_found_is_the_answer_of_all(self, monkeypatch):
        monkeypatch.setattr(collectives, "gather_object", lambda mine: [("found", None), *mine])

        assert on_main(Pretended(num_processes=3, is_main_process=False), lambda: "own") == "found"

    def test_what_fails_on_the_main_process_fails_on_the_others(self, monkeypatch):
        monkeypatch.setattr(collectives, "gather_object", lambda mine: [(None, "KeyError: 'x'"), *mine])

        with pytest.raises(RankError, match="process 0 failed with KeyError: 'x'"):
            on_main(Pretended(num_processes=3, is_main_process=False), lambda: None)


# --- Over gloo -------------------------------------------------------------------------------------------------


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
    """Process 1 dies before the second exchange; what process 0 is told."""
    dist.init_process_group("gloo", timeout=timedelta(hours=1))
    collectives._takes_host_memory = lambda group: False  # type: ignore[assignment]
    collectives.gather_object([1])
    if dist.get_rank() == 1:
        os._exit(1)
    with translate_collective_errors(3600):
        collectives.gather_object([2])
    return "nothing"


def test_a_lost_process_is_named_in_an_exchange_beside_nccl() -> None:
    """Long before the hour after which an exchange is given up."""
    with pytest.raises(ProcessFailure, match="RankError: process 0 lost the others: one of them died"):
        run_processes(2, lose_one)


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
