"""What is told of a run as it continues, and may ask it to stop, save or evaluate.

Every process calls every callback, in the order in which the trainer holds them: its own first (``RunFolder``,
``Trackers``, ``Display``, ``KeepBest``), then those that were given or added. What a callback writes or shows it writes
on one process (``trainer.accelerator.is_main_process``). What it changes it changes on all of them.
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
    """What callbacks ask of a trainer, as ``trainer.control``. What one process asks for, all do.

    A request is met in the training step in which it is made, if it is made in time; else in the one that follows, if
    one does. One to evaluate is in time up to ``on_update``, the others up to ``on_step_end``.

    Attributes:
        should_training_stop: end after this training step, as a run ends: with a checkpoint of it where ``save_steps``
            is set, an evaluation where ``eval_steps`` is and the request is in time for one, the best weights, and
            ``tester/``. Asked for in ``on_train_begin``: before the first training step.
        should_evaluate: evaluate after this training step's updates. Then the request is forgotten.
        should_save: write a checkpoint of this training step. Then the request is forgotten.
    """

    should_training_stop: bool = False
    should_evaluate: bool = False
    should_save: bool = False

    def join(self, others: Iterable[TrainerControl]) -> None:
        """Ask for whatever any of them asks for."""
        asked = list(others)
        for field in fields(self):
            setattr(self, field.name, any(getattr(one, field.name) for one in asked))


class TrainerCallback:
    """What a callback may do; each method does nothing unless it is overridden.

    A callback need not inherit from this: it has any of these methods. The events of a training step come in the order
    below. ``trainer`` has the configuration (``trainer.config``), how far the run is (``trainer.state``: ``step``
    counts the training steps whose updates are made), its files (``trainer.folder``) and ``trainer.control``.

    What a callback raises ends the run on all processes as soon as these exchange something: before the next update, or
    at the end of the training step. Until then callbacks are called as on processes where nothing failed.
    """

    def on_train_begin(self, trainer: AccelTrainer) -> None:
        """Training begins, or continues from a checkpoint, which has been read; the output folder is there."""

    def on_step_begin(self, trainer: AccelTrainer) -> None:
        """A training step begins; nothing of it is there yet."""

    def on_experience(self, trainer: AccelTrainer, experience: Experience) -> None:
        """An experience has been collected: all graphs and examples, the same on every process."""

    def on_update(self, trainer: AccelTrainer, record: Mapping[str, Any]) -> None:
        """The optimizer stepped. ``record`` has ``step``, ``update``, ``loss``, ``grad_norm``, ``lr`` and what the
        algorithm logs, the same on every process."""

    def on_evaluate(self, trainer: AccelTrainer, metrics: Mapping[str, float]) -> None:
        """An evaluation of the training step was made; ``metrics`` has the evaluator's names, without ``eval/``.

        Those that are asked for by ``trainer.evaluate()`` are told to who asks alone.
        """

    def on_log(self, trainer: AccelTrainer, record: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl`` is about to be written, once an update, with all figures of the training step.

        Figures that are added to ``record`` are written as well, also to trackers; those of the main process.
        """

    def on_step_end(self, trainer: AccelTrainer, experience: Experience, records: Sequence[Mapping[str, Any]]) -> None:
        """A training step is done, but for its checkpoint. ``records`` are its lines of ``metrics.jsonl``."""

    def on_save(self, trainer: AccelTrainer, path: Path) -> None:
        """A checkpoint was written."""

    def on_train_end(self, trainer: AccelTrainer) -> None:
        """Training ended by itself or by a signal, not by an error; ``tester/`` is written, but for a signal."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint is to keep of this callback, as JSON can say it; that of the main process is kept."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept, before ``on_train_begin``. Called only if it kept anything."""


T = TypeVar("T")


class CallbackHandler:
    """The callbacks of a trainer.

    An event is told to those of this process, without an exchange. What they ask for and fail with waits for the next
    exchange that there is anyway.

    Args:
        trainer: what they are told of.
        callbacks: objects, or classes to make one of.

    Attributes:
        callbacks: in the order in which they are called.
        stopping: whether a callback of any process wants the run to end; the same on all processes, which
            ``trainer.control`` is not between exchanges.
    """

    def __init__(self, trainer: AccelTrainer, callbacks: Iterable[Any]) -> None:
        self.callbacks: list[Any] = []
        self.stopping = False
        self._trainer = trainer
        self._failure: Exception | None = None
        for callback in callbacks:
            self.add(callback)

    def add(self, callback: Any) -> None:
        """Call this one too, after the others."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def remove(self, callback: Any) -> Any:
        """Call this one, or the first of this class, no longer; it is returned.

        Raises:
            ValueError: there is none.
        """
        for index, there in enumerate(self.callbacks):
            if there is callback or type(there) is callback:
                return self.callbacks.pop(index)
        names = ", ".join(type(there).__name__ for there in self.callbacks)
        raise ValueError(f"{callback!r} is no callback of this trainer; expected one of {names}")

    def begin(self) -> None:
        """Bring back what a checkpoint kept of callbacks, and tell them that training begins."""
        left = dict(self._trainer.state.callbacks or {})
        for name, callback in self._named():
            if name in left:
                callback.load_state(left.pop(name))
        for name in left:
            self._trainer.display.say(f"the checkpoint kept something of {name}, which is no callback of this run")
        self.call("on_train_begin")

    def call(self, event: str, *arguments: Any) -> None:
        """Tell each callback of an event. The first error is kept for :meth:`raise_failure`."""
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
        """Fail with what a callback failed with since the last time. Called where the other processes learn of it."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def agree(self, work: Callable[[], T]) -> list[T]:
        """Each process's result, in one exchange, by which all learn what callbacks on any of them ask for.

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
        """What there is to keep of callbacks, by the names of their classes; None if there is nothing."""
        states: dict[str, Any] = {name: getattr(callback, "state", dict)() for name, callback in self._named()}
        return {name: state for name, state in states.items() if state} or None

    def _named(self) -> list[tuple[str, Any]]:
        """Callbacks by class; the second one of a class is ``EarlyStopping 2``."""
        named: dict[str, Any] = {}
        for callback in self.callbacks:
            kind = type(callback).__name__
            number = 1 + sum(type(other).__name__ == kind for other in named.values())
            named[kind if number == 1 else f"{kind} {number}"] = callback
        return list(named.items())
