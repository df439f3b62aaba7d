"""What a callback on one process asks for, or fails with, reaches all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from astra_accel import AccelTrainer, TrainerCallback, TrainingConfiguration
from astra_accel.distributed import collectives
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.collectives import RankError
from tests.helpers.plain import build_plain
from tests.helpers.processes import run_processes

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


def _trainer(output_dir: Path, accelerator: Accelerator, *callbacks: Any, **settings: Any) -> AccelTrainer:
    fixed = {"output_dir": output_dir, "batch_size": 4, "training_steps": 3, "sample_steps": None, "timeout": 60.0}
    config = TrainingConfiguration(**fixed | settings)
    return AccelTrainer(config, *build_plain(), accelerator=accelerator, callbacks=callbacks)


class _OnProcessOne:
    """Does something at an event, on process 1 alone, in the second training step where the event has one."""

    def __init__(self, event: str, do: Any) -> None:
        def told(trainer: AccelTrainer, *_: Any) -> None:
            if os.environ["RANK"] == "1" and (trainer.state.step in (1, 2) or event.startswith("on_train")):
                do(trainer)

        setattr(self, event, told)


class _Exchanges:
    """Counts the exchanges between one update of an experience and the next."""

    def __init__(self) -> None:
        self.made, self.between_updates = 0, set()
        self._at_last = (-1, 0)
        exchange = collectives.gather_object

        def counted(own: Any) -> Any:
            self.made += 1
            return exchange(own)

        collectives.gather_object = counted

    def on_train_begin(self, trainer: AccelTrainer) -> None:
        self._at_last = (-1, 0)

    def on_update(self, trainer: AccelTrainer, record: dict[str, Any]) -> None:
        step, made = self._at_last
        if record["step"] == step:
            self.between_updates.add(self.made - made)
        self._at_last = (record["step"], self.made)


def _fail_everywhere(folder: Path) -> dict[str, str]:
    """What each event's failure on process 1 becomes on this one."""
    accelerator = make_accelerator(TrainingConfiguration(batch_size=4, timeout=60))
    found = {}

    def fail(_: AccelTrainer) -> None:
        raise ConnectionError("no more room")

    for event in EVENTS:
        trainer = _trainer(folder / event, accelerator, _OnProcessOne(event, fail), eval_steps=1, save_steps=1)
        with pytest.raises((ConnectionError, RankError)) as caught:
            trainer.train()
        found[event] = f"{type(caught.value).__name__}: {caught.value} (update {trainer.state.update})"
    return found


@pytest.mark.slow
def test_what_a_callback_raises_on_one_process_ends_all_of_them(tmp_path: Path) -> None:
    other, own = run_processes(2, _fail_everywhere, tmp_path)
    for event in EVENTS:
        update = own[event].rpartition(" (")[2]
        assert own[event] == f"ConnectionError: no more room ({update}"
        assert other[event] == f"RankError: process 1 failed with ConnectionError: no more room ({update}"


def _ask(folder: Path) -> tuple[list[Any], set[int]]:
    accelerator = make_accelerator(TrainingConfiguration(batch_size=4))
    exchanges, found = _Exchanges(), []
    for request, event in (
        ("should_evaluate", "on_update"),
        ("should_save", "on_log"),
        ("should_training_stop", "on_step_end"),
        ("should_training_stop", "on_save"),
    ):
        seen: list[str] = []

        class Seen:
            def on_evaluate(self, trainer: AccelTrainer, _: Any) -> None:
                seen.append(f"evaluated {trainer.state.step}")  # noqa: B023

            def on_save(self, trainer: AccelTrainer, path: Path) -> None:
                seen.append(f"saved {path.name}")  # noqa: B023

        asking = _OnProcessOne(event, lambda trainer, request=request: setattr(trainer.control, request, True))
        settings = {"batch_size": 2, "training_steps": 4, "save_steps": 1 if event == "on_save" else None}
        trainer = _trainer(folder / f"{request}-{event}", accelerator, exchanges, Seen(), asking, **settings)
        trainer.train()
        found.append((trainer.state.step, seen))
    return found, exchanges.between_updates


def test_what_one_process_asks_for_all_do_without_an_exchange_more(tmp_path: Path) -> None:
    one, other = run_processes(2, _ask, tmp_path)
    assert one == other
    found, between_updates = one
    assert found == [
        (4, ["evaluated 2", "saved step-000002", "evaluated 3"]),  # the first one is the best
        (4, ["saved step-000001", "saved step-000002"]),
        (1, []),
        (2, ["saved step-000001", "saved step-000002"]),
    ]
    assert between_updates == {1}
