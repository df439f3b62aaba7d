"""Ends a run whose tester has reached a configured value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from astra_accel.training.callbacks.base import TrainerCallback
from astra_accel.training.metrics import experience_metrics

if TYPE_CHECKING:
    from astra_accel.experience.loader import Experience
    from astra_accel.training.trainer import AccelTrainer

FIELD = "training.stop_at"


def check_stop_at(limits: Mapping[str, float] | None, figures: Sequence[str]) -> None:
    """Reject a figure that no experience has.

    Raises:
        ValueError: a limit is on such a figure; names it and the available ones.
    """
    for name in limits or ():
        if name not in figures:
            raise ValueError(f"{FIELD} has {name!r}, which no experience has; expected some of {', '.join(figures)}")


class StopAt(TrainerCallback):
    """Ends a run after the first training step in which a figure of its experience reaches ``training.stop_at``.

    An experience is sampled before the updates of its training step, so the final tester has had one more training step
    of updates than the figure reflects. Training steps in which the tester is shown few-shot examples don't count: such
    probes say little about what it writes without them. A resumed run that had ended this way ends again, unless the
    value to reach was raised.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_train_begin(self, trainer: AccelTrainer) -> None:
        """End at once if a resumed run had already reached the value."""
        self._ask(trainer, self.last)

    def on_experience(self, trainer: AccelTrainer, experience: Experience) -> None:
        """Check the figures of the experience.

        Raises:
            ValueError: an experience has no such figure; names the available ones.
        """
        few_shot = getattr(trainer.harness.sampler, "few_shot", None)
        if few_shot is not None and trainer.state.step < few_shot.steps:
            return
        figures = {name: value for name, value in experience_metrics(experience).items() if name.startswith("reward/")}
        if figures:  # empty if no turn had a reward
            check_stop_at(trainer.config.stop_at, list(figures))
        self.last = figures
        self._ask(trainer, figures)

    def state(self) -> dict[str, Any]:
        """The reward's figures in the last experience that counted."""
        return self.last

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore these figures."""
        self.last = dict(state)

    def _ask(self, trainer: AccelTrainer, figures: Mapping[str, float]) -> None:
        for name, limit in (trainer.config.stop_at or {}).items():
            if figures.get(name, -float("inf")) >= limit:
                trainer.display.say(f"{name} is {figures[name]:.4g}, at least {limit:g} ({FIELD}): the run ends")
                trainer.control.should_training_stop = True
