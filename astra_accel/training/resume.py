"""Going on from a checkpoint: which it is, and what has changed since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from astra_accel.training import checkpoint as checkpoints
from astra_accel.training.config_text import changed_fields
from astra_accel.training.distributed import on_main

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer

# What the optimizer's and the schedule's saved state decides: a new value would be overruled, or would not fit.
FIXED_ON_RESUME = tuple(
    f"training.{name}" for name in ("optimizer", "lr", "weight_decay", "lr_scheduler", "warmup_steps")
)


def newest_whole(trainer: AccelTrainer) -> Path | None:
    """The newest whole checkpoint of a run's own folder, if there is one; those that are not are told."""
    folder = trainer.folder.checkpoints
    # One process looks for all, or they might see different moments.
    found, passed_over = on_main(trainer.accelerator, lambda: checkpoints.newest_checkpoint(folder))
    for why in passed_over:
        trainer.display.say(f"passed over: {why}")
    return found


def go_on_from(trainer: AccelTrainer, checkpoint: Path) -> None:
    """Take over weights, state and progress, and tell what has changed since. All processes together.

    Raises:
        CheckpointError: see :func:`changes_since`; or its weights are another model's.
    """
    for change in changes_since(checkpoint, trainer.config_yaml):
        trainer.display.say(f"changed since {checkpoint.name}: {change}")
    trainer.state = checkpoints.load_checkpoint(trainer.saved_parts(), checkpoint)
    trainer.display.say(f"resumed from {checkpoint} at step {trainer.state.step}")


def changes_since(checkpoint: Path, config_yaml: str) -> list[str]:
    """The fields that have other values than when a checkpoint was written, with both.

    Raises:
        CheckpointError: it is no whole checkpoint, or its optimizer or schedule was another.
    """
    checkpoints.verify_checkpoint(checkpoint)
    changes = changed_fields(checkpoints.read_config(checkpoint), config_yaml)
    fixed = [change for name, change in changes.items() if name in FIXED_ON_RESUME]
    if fixed:
        raise checkpoints.CheckpointError(
            f"{checkpoint} holds the state of another optimizer or schedule: {'; '.join(fixed)}. Resume with the "
            f"values that it has, or start a new run from its tester"
        )
    return list(changes.values())
