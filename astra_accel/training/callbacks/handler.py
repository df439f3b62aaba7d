"""Calls callbacks, and brings what they ask for, or fail with, to all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from astra_accel.distributed.collectives import on_every_rank
from astra_accel.training.callbacks.base import TrainerControl

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer

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

        parts = on_every_rank(self._trainer.accelerator, part)
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
