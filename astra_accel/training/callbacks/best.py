"""The best checkpoint: chooses it, keeps it for resumed runs, and loads its weights as the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from astra_accel.distributed.collectives import on_main
from astra_accel.training.callbacks.base import TrainerCallback
from astra_accel.training.callbacks.bounds import check_untrained, out_of_bounds
from astra_accel.training.callbacks.early_stopping import is_better, read_metric
from astra_accel.training.checkpoint import layout as checkpoints
from astra_accel.training.checkpoint.load import load_weights
from astra_accel.training.checkpoint.verify import verify_together
from astra_accel.training.metrics import Stopwatch
from astra_accel.training.run_context import RunContext

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer

METRIC_FIELD = "training.best_metric"


class KeepBest(TrainerCallback):
    """Tracks the best evaluation by ``training.best_metric``, and has its checkpoint saved."""

    def on_evaluate(self, trainer: AccelTrainer, metrics: Mapping[str, float]) -> None:
        """Request a checkpoint if this training step is better than all before it, and within ``best_bounds``.

        Raises:
            ValueError: the evaluator has no such metric.
        """
        state, name = trainer.state, trainer.config.best_metric
        value = read_metric(metrics, name, METRIC_FIELD)
        why = f"{METRIC_FIELD} {name} has no value" if math.isnan(value) else out_of_bounds(trainer, metrics)
        if why is not None:
            state.not_best = why
            trainer.display.say(f"the evaluation of step {state.step} is not the best: {why}")
        elif is_better(value, state.best_value):
            state.best_value, state.best_step = value, state.step
            trainer.control.should_save = True


def evaluate_untrained(run: RunContext, evaluate: Callable[[], dict[str, float]], stopwatch: Stopwatch) -> None:
    """Get the figures that ``best_bounds`` refer to, before the first training step. All processes must call it.

    This evaluation can't be the best one: the untrained tester is not the goal of a run.

    Raises:
        ValueError: the evaluator has no such metric; or see :func:`.bounds.check_untrained`.
    """
    config, state = run.config, run.state
    if not config.best_bounds or state.untrained is not None:
        return
    with stopwatch.phase("evaluate"):
        metrics = evaluate()
    read_metric(metrics, config.best_metric, METRIC_FIELD)
    check_untrained(config.best_bounds, metrics)
    state.untrained = {name: value for name, value in metrics.items() if math.isfinite(value)}
    record = {"step": 0, "update": 0, **{f"eval/{name}": value for name, value in metrics.items()}}
    record |= stopwatch.take()
    on_main(run.accelerator, lambda: run.folder.write_metrics(record))
    figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in dict.fromkeys(config.watched_metrics))
    run.display.say(f"the untrained tester, to which training.best_bounds are relative: {figures}")


def bring_best(run: RunContext, resumed: Path) -> None:
    """Copy the best checkpoint so far to the run's own, if the run resumes from another folder."""
    state, folder = run.state, run.folder.checkpoints
    if state.best_step is None:
        return
    name = checkpoints.checkpoint_name(state.best_step)
    own, there = folder / name, resumed.parent / name

    def bring() -> bool:
        if not (own / checkpoints.MANIFEST).is_file() and (there / checkpoints.MANIFEST).is_file():
            checkpoints.adopt_checkpoint(there, folder)
        return (own / checkpoints.MANIFEST).is_file()

    # One process looks for all, since each could see a different moment.
    if not on_main(run.accelerator, bring):
        run.display.say(f"{there}, the best checkpoint so far, is gone: the next evaluation counts as the best")
        state.best_step = state.best_value = None


def load_best(run: RunContext) -> None:
    """Load the weights of the best checkpoint, if there is one that is not the last. All processes must call it.

    Its files are verified first, split among the processes.

    Raises:
        CheckpointError: a file of the best checkpoint is missing or damaged; names it, on every process.
    """
    best, why_not = run.state.best_step, run.state.not_best
    if best is None and why_not is not None:
        lacked = "was within training.best_bounds" if run.config.best_bounds else f"had a value of {METRIC_FIELD}"
        run.display.say(
            f"no evaluation {lacked}, so none is the best and the tester has the last weights; of the last: {why_not}"
        )
    if best is None or best == run.state.step:
        return
    path = run.folder.checkpoints / checkpoints.checkpoint_name(best)
    load_weights(run.engine, verify_together(run.accelerator, path))
    run.display.say(f"took the weights of {path}, the best by {run.config.best_metric}")
