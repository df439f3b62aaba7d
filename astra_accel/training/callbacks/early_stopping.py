"""Ends a run that no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from astra_accel.training.callbacks.base import TrainerCallback
from astra_accel.training.callbacks.bounds import out_of_bounds

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer


class EarlyStopping(TrainerCallback):
    """Ends a run after several evaluations in a row without improvement; needs ``training.eval_steps``.

    An evaluation outside ``training.best_bounds`` is never an improvement, whatever its value. The run ends as it would
    at its last training step; with ``load_best_at_end``, with the best weights. A resumed run continues counting; one
    that had ended this way ends again unless it gets more patience::

        AccelTrainer(config, sampler, algorithm, callbacks=[EarlyStopping("response_score/mean", patience=3)])

    Args:
        metric: the evaluator's name for the metric; higher is better. None is ``training.best_metric``.
        patience: how many evaluations in a row may bring no improvement.
        threshold: how far a value must exceed the best so far to be an improvement.

    Raises:
        ValueError: ``patience`` is below 1, or ``threshold`` is negative or not finite.
    """

    def __init__(self, metric: str | None = None, patience: int = 1, threshold: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping's patience is {patience}; expected at least 1 evaluation")
        if not 0 <= threshold < math.inf:
            raise ValueError(f"EarlyStopping's threshold is {threshold}; expected a finite number, at least 0")
        self.metric, self.patience, self.threshold = metric, patience, threshold
        self.best: float | None = None
        self.num_no_better = 0

    def on_train_begin(self, trainer: AccelTrainer) -> None:
        """Check that there will be evaluations; end at once if a resumed run had run out of patience.

        Raises:
            ValueError: there will be no evaluations.
        """
        if trainer.config.eval_steps is None:
            raise ValueError("EarlyStopping needs evaluations, but training.eval_steps is null; expected a number")
        self._ask(trainer)

    def on_evaluate(self, trainer: AccelTrainer, metrics: Mapping[str, float]) -> None:
        """Count the evaluation.

        Raises:
            ValueError: the evaluator has no such metric.
        """
        value = read_metric(metrics, self.metric or trainer.config.best_metric, "EarlyStopping's metric")
        if is_better(value, self.best, self.threshold) and out_of_bounds(trainer, metrics) is None:
            self.best, self.num_no_better = value, 0
        else:
            self.num_no_better += 1
        self._ask(trainer)

    def _ask(self, trainer: AccelTrainer) -> None:
        if self.num_no_better >= self.patience:
            trainer.control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """The best value so far, and the number of evaluations since without improvement."""
        return {"best": self.best, "num_no_better": self.num_no_better}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue counting from a saved state."""
        self.best, self.num_no_better = state["best"], state["num_no_better"]


def read_metric(metrics: Mapping[str, float], name: str, whose: str) -> float:
    """Look up a metric of an evaluation by name.

    Raises:
        ValueError: there is no metric of that name; the message says ``whose`` it is.
    """
    if name not in metrics:
        raise ValueError(f"{whose} is {name!r}; the evaluator gives {', '.join(metrics)}")
    return metrics[name]


def is_better(value: float, best: float | None, threshold: float = 0.0) -> bool:
    """Whether a value exceeds the best so far by more than a threshold; nan never does."""
    return not math.isnan(value) and (best is None or value - best > threshold)
