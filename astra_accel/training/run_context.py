"""What the parts of training share."""

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
    """A run: what is trained, on what, how far it is, and where it writes.

    Updates, resuming and the best checkpoint are given this, not the trainer.

    Attributes:
        config: how to train.
        accelerator: the processes.
        engine: holds the weights and the optimizer's state.
        state: how far the run is; replaced when a checkpoint is loaded.
        folder: the run's files.
        display: the screen of the main process.
    """

    config: TrainingConfiguration
    accelerator: Accelerator
    engine: Engine
    state: TrainerState
    folder: RunFolder
    display: Display
