"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import get_scheduler

from astra_accel.config import TrainingConfiguration
from astra_accel.errors import ConfigurationError

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def build_optimizer(config: TrainingConfiguration, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the torch optimizer that the configuration names, with torch's defaults for all that is not configured."""
    options: dict[str, Any] = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    return OPTIMIZERS[config.optimizer](parameters, lr=config.lr, **options)


def check_schedule(config: TrainingConfiguration) -> None:
    """Reject arguments, or values of them, that the learning-rate schedule does not accept, before models load.

    Raises:
        ConfigurationError: one is not accepted; names ``training.lr_scheduler_kwargs``.
    """
    nothing = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    try:
        schedule = LearningRate(config, nothing).scheduler
        # Some arguments are first used after the warm-up, or at the end.
        middle = (config.warmup_steps + config.training_steps) // 2
        steps = [0, config.warmup_steps, middle, config.training_steps]
        rates = [rate(step) for rate in getattr(schedule, "lr_lambdas", ()) for step in steps]
    except ConfigurationError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise _refused(config, error) from error
    if not all(isinstance(rate, int | float) and math.isfinite(rate) for rate in rates):
        raise _refused(config, f"at steps {steps} the learning rates are {rates} times training.lr")


def _refused(config: TrainingConfiguration, why: object) -> ConfigurationError:
    return ConfigurationError(
        f"training.lr_scheduler {config.lr_scheduler!r} does not take "
        f"training.lr_scheduler_kwargs {config.lr_scheduler_kwargs}: {why}"
    )


class LearningRate:
    """A schedule from transformers' ``get_scheduler``, advanced once per training step.

    The number of updates on an experience depends on how many pairs it yields, so a schedule counted in updates would
    not know its length. Counted in training steps, warm-up and decay span the run exactly, on any number of processes
    (Accelerate would step a prepared scheduler once per process).
    """

    def __init__(self, config: TrainingConfiguration, optimizer: torch.optim.Optimizer) -> None:
        try:
            self.scheduler = get_scheduler(
                config.lr_scheduler,
                optimizer,
                num_warmup_steps=config.warmup_steps,
                num_training_steps=config.training_steps,
                scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs),
            )
        except (TypeError, ValueError) as error:
            raise _refused(config, error) from error
        self._optimizer = optimizer

    @property
    def value(self) -> float:
        """The current learning rate."""
        return float(self._optimizer.param_groups[0]["lr"])

    def advance(self, mean_reward: float) -> None:
        """Advance to the next training step; a plateau schedule watches the mean reward (lower is no progress)."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(-mean_reward)
        else:
            with warnings.catch_warnings():
                # torch warns if no update came before, as when the first experience is empty.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state, for a checkpoint."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the schedule's state from a checkpoint."""
        self.scheduler.load_state_dict(state)
