"""Callbacks, which are notified during a run and may ask it to stop, save or evaluate.

Every process calls every callback, in the order in which the trainer holds them: its own first (``RunFolder``,
``Trackers``, ``Display``, ``KeepBest``), then those that were passed or added. A callback writes or shows things on one
process only (``trainer.accelerator.is_main_process``), but makes its changes on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from astra_accel.distributed.collectives import gather_results

if TYPE_CHECKING:
    from astra_accel.experience.loader import Experience
    from astra_accel.training.trainer import AccelTrainer


@dataclass
class TrainerControl:
    """Callbacks' requests to a trainer, as ``trainer.control``. A request on one process applies to all.

    A request is met in its own training step if it is made in time, else in the next one, if there is one. A request to
    evaluate is in time up to ``on_update``, the others up to ``on_step_end``.

    Attributes:
        should_training_stop: end after this training step as runs normally end: with a checkpoint if ``save_steps`` is
            set, an evaluation if ``eval_steps`` is set and the request is in time for one, the best weights, and
            ``tester/``. If requested in ``on_train_begin``, end before the first training step.
        should_evaluate: evaluate after this training step's updates. The request is then cleared.
        should_save: write a checkpoint of this training step. The request is then cleared.
    """

    should_training_stop: bool = False
    should_evaluate: bool = False
    should_save: bool = False

    def join(self, others: Iterable[TrainerControl]) -> None:
        """Request whatever any of the others requests."""
        asked = list(others)
        for field in fields(self):
            setattr(self, field.name, any(getattr(one, field.name) for one in asked))


class TrainerCallback:
    """The events that a callback can handle; each method does nothing unless overridden.

    A callback need not inherit from this class; it may define any of these methods. The events of a training step come
    in the order below. ``trainer`` has the configuration (``trainer.config``), the run's progress (``trainer.state``:
    ``step`` counts the training steps whose updates are done), its files (``trainer.folder``) and ``trainer.control``.

    An error raised by a callback ends the run on all processes at their next exchange: before the next update, or at
    the end of the training step. Until then, callbacks are called as on processes where nothing failed.
    """

    def on_train_begin(self, trainer: AccelTrainer) -> None:
        """Training begins, or continues from a checkpoint that has been loaded; the output folder exists."""

    def on_step_begin(self, trainer: AccelTrainer) -> None:
        """A training step begins; it has no results yet."""

    def on_experience(self, trainer: AccelTrainer, experience: Experience) -> None:
        """An experience has been collected: all graphs and examples, the same on every process."""

    def on_update(self, trainer: AccelTrainer, record: Mapping[str, Any]) -> None:
        """The optimizer stepped.

        ``record`` has ``step``, ``update``, ``loss``, ``grad_norm``, ``lr`` and what the algorithm logs, the same on
        every process.
        """

    def on_evaluate(self, trainer: AccelTrainer, metrics: Mapping[str, float]) -> None:
        """The training step was evaluated; ``metrics`` uses the evaluator's names, without ``eval/``.

        The metrics of a direct call of ``trainer.evaluate()`` go to its caller only.
        """

    def on_log(self, trainer: AccelTrainer, record: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl`` is about to be written, once per update, with all figures of the training step.

        Figures added to ``record`` on the main process are written too, also to trackers.
        """

    def on_step_end(self, trainer: AccelTrainer, experience: Experience, records: Sequence[Mapping[str, Any]]) -> None:
        """A training step is done, except for its checkpoint. ``records`` are its lines of ``metrics.jsonl``."""

    def on_save(self, trainer: AccelTrainer, path: Path) -> None:
        """A checkpoint was written."""

    def on_train_end(self, trainer: AccelTrainer) -> None:
        """Training ended normally or by a signal, not by an error; ``tester/`` is written unless it was a signal."""

    def state(self) -> dict[str, Any]:
        """This callback's state for checkpoints, as JSON values; the main process's state is saved."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint, before ``on_train_begin``. Called only if the checkpoint has one."""


T = TypeVar("T")


class CallbackHandler:
    """The callbacks of a trainer.

    An event goes to the callbacks of this process, without an exchange. Their requests and errors wait for the next
    exchange that takes place anyway.

    Args:
        trainer: passed to the callbacks with each event.
        callbacks: objects, or classes to instantiate.

    Attributes:
        callbacks: the callbacks in the order in which they are called.
        stopping: whether a callback of any process wants the run to end; the same on all processes, unlike
            ``trainer.control`` between exchanges.
    """

    def __init__(self, trainer: AccelTrainer, callbacks: Iterable[Any]) -> None:
        self.callbacks: list[Any] = []
        self.stopping = False
        self._trainer = trainer
        self._failure: Exception | None = None
        for callback in callbacks:
            self.add(callback)

    def add(self, callback: Any) -> None:
        """Add a callback, which is called after the others."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def remove(self, callback: Any) -> Any:
        """Remove this callback, or the first of this class, and return it.

        Raises:
            ValueError: there is no such callback.
        """
        for index, there in enumerate(self.callbacks):
            if there is callback or type(there) is callback:
                return self.callbacks.pop(index)
        names = ", ".join(type(there).__name__ for there in self.callbacks)
        raise ValueError(f"{callback!r} is not a callback of this trainer; expected one of {names}")

    def begin(self) -> None:
        """Restore the callbacks' state from a checkpoint, and notify them that training begins."""
        left = dict(self._trainer.state.callbacks or {})
        for name, callback in self._named():
            if name in left:
                callback.load_state(left.pop(name))
        for name in left:
            self._trainer.display.say(f"the checkpoint holds state of {name}, which is not a callback of this run")
        self.call("on_train_begin")

    def call(self, event: str, *arguments: Any) -> None:
        """Notify each callback of an event. The first error is kept for :meth:`raise_failure`."""
        for callback in list(self.callbacks):
            told = getattr(callback, event, None)
            if told is None:
                continue
            try:
                told(self._trainer, *arguments)
            except Exception as error:
                error.add_note(f"in {event} of the callback {type(callback).__name__}")
                if self._failure is None:
                    self._failure = error

    def raise_failure(self) -> None:
        """Raise the first error of a callback since the last call. Called where the other processes learn of it."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def sync_control(self, work: Callable[[], T]) -> list[T]:
        """Each process's result, in one exchange that also shares the requests of callbacks on any process.

        Raises:
            RankError: a callback failed on another process.
        """

        def part() -> tuple[T, TrainerControl]:
            result = work()
            self.raise_failure()
            return result, self._trainer.control

        parts = gather_results(self._trainer.accelerator, part)
        self._trainer.control.join(control for _, control in parts)
        self.stopping = self._trainer.control.should_training_stop
        return [result for result, _ in parts]

    def state(self) -> dict[str, Any] | None:
        """The callbacks' state by the names of their classes; None if there is none."""
        states: dict[str, Any] = {name: getattr(callback, "state", dict)() for name, callback in self._named()}
        return {name: state for name, state in states.items() if state} or None

    def _named(self) -> list[tuple[str, Any]]:
        """Callbacks by class name; the second one of a class is ``EarlyStopping 2``."""
        named: dict[str, Any] = {}
        for callback in self.callbacks:
            kind = type(callback).__name__
            number = 1 + sum(type(other).__name__ == kind for other in named.values())
            named[kind if number == 1 else f"{kind} {number}"] = callback
        return list(named.items())
