"""State shared by the parts of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import Accelerator

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed.engine import Engine
from astra_accel.training.checkpoint.layout import TrainerState

if TYPE_CHECKING:
    from astra_accel.training.callbacks.console import Display
    from astra_accel.training.callbacks.run_files import RunFolder


@dataclass
class RunContext:
    """A run: what is trained and on what, its progress, and where it writes.

    Updates, resuming and the best checkpoint receive this instead of the trainer.

    Attributes:
        config: the training configuration.
        accelerator: connects the run's processes.
        engine: holds the weights and the optimizer's state.
        state: the run's progress; replaced when a checkpoint is loaded.
        folder: the run's output folder.
        display: what the main process shows on screen.
    """

    config: TrainingConfiguration
    accelerator: Accelerator
    engine: Engine
    state: TrainerState
    folder: RunFolder
    display: Display
