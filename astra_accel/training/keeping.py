"""When a checkpoint is written: those that it makes superfluous go, and a run may go on without it."""

from __future__ import annotations

import logging
from pathlib import Path

from astra_accel.config import TrainingConfiguration
from astra_accel.training import checkpoint as checkpoints
from astra_accel.training.checkpoint import Training, UnsavedError
from astra_accel.training.distributed import RankError, on_every_rank, on_main

logger = logging.getLogger(__name__)


def save(training: Training, folder: Path, config: TrainingConfiguration) -> Path | None:
    """Write a checkpoint into the folder of checkpoints and delete older ones. All processes together.

    None: it could not be written, and the run goes on (``training.stop_if_unsaved``).

    Raises:
        UnsavedError, RankError: it could not be written, and the run ends.
    """
    accelerator, state = training.engine.accelerator, training.state
    try:
        path = checkpoints.save_checkpoint(training, folder)
    except (UnsavedError, RankError) as error:
        # The process that could not write it says why on its screen.
        unsaved = isinstance(error, UnsavedError)
        if config.stop_if_unsaved or not any(on_every_rank(accelerator, lambda: unsaved)):
            raise
        logger.warning("%s; the run goes on (training.stop_if_unsaved)", error)
        return None
    on_main(
        accelerator,
        lambda: checkpoints.prune_checkpoints(folder, config.save_total_limit, state.step, state.best_step),
    )
    return path
