"""The best checkpoint: which it is, that a resumed run has it, and that its weights are the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from astra_accel.training import checkpoint as checkpoints
from astra_accel.training.callbacks import TrainerCallback
from astra_accel.training.distributed import on_main
from astra_accel.training.early_stopping import is_better, read_metric

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer


class KeepBest(TrainerCallback):
    """Notes the best evaluation by ``training.best_metric``, and has it saved."""

    def on_evaluate(self, trainer: AccelTrainer, metrics: Mapping[str, float]) -> None:
        """Ask for a checkpoint of a training step that is better than all before.

        Raises:
            ValueError: the evaluator has no such metric.
        """
        value = read_metric(metrics, trainer.config.best_metric, "training.best_metric")
        if is_better(value, trainer.state.best_value):
            trainer.state.best_value, trainer.state.best_step = value, trainer.state.step
            trainer.control.should_save = True


def bring_best(trainer: AccelTrainer, resumed: Path) -> None:
    """Have the best checkpoint so far among the run's own, where the resumed one is of another folder."""
    state, folder = trainer.state, trainer.folder.checkpoints
    if state.best_step is None:
        return
    name = checkpoints.checkpoint_name(state.best_step)
    own, there = folder / name, resumed.parent / name

    def bring() -> bool:
        if not (own / checkpoints.MANIFEST).is_file() and (there / checkpoints.MANIFEST).is_file():
            checkpoints.adopt_checkpoint(there, folder)
        return (own / checkpoints.MANIFEST).is_file()

    # One process looks for all, or they might see different moments.
    if not on_main(trainer.accelerator, bring):
        trainer.display.say(f"{there}, the best checkpoint so far, is gone: the best is looked for anew")
        state.best_step = state.best_value = None


def load_best(trainer: AccelTrainer) -> None:
    """Take the weights of the best checkpoint, where there is one that is not the last. All processes together."""
    best = trainer.state.best_step
    if best is None or best == trainer.state.step:
        return
    path = trainer.folder.checkpoints / checkpoints.checkpoint_name(best)
    checkpoints.load_weights(trainer.engine, path)
    trainer.display.say(f"took the weights of {path}, the best by {trainer.config.best_metric}")
