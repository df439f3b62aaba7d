"""The updates on an experience."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from astra_accel.config import TrainingConfiguration
from astra_accel.core.optional import StopsEarly, offers
from astra_accel.distributed.collectives import on_main
from astra_accel.errors import NonFiniteError
from astra_accel.experience.loader import Experience, ExperienceLoader, MicroBatch
from astra_accel.models.memory import return_freed_memory
from astra_accel.training.callbacks.base import CallbackHandler
from astra_accel.training.metrics import UpdateTally
from astra_accel.training.optim import LearningRate
from astra_accel.training.run_context import RunContext


class EmptyExperienceError(RuntimeError):
    """Too many experiences in a row yielded no training example."""


class Updater:
    """Makes the updates on an experience. All processes must call it.

    Args:
        run: what is trained, and its progress.
        loader: the micro-batches of an experience.
        learning_rate: the schedule, read for the record of an update.
        algorithm: may end the updates on an experience early (``stop_early``).
        callbacks: are notified of each update.
    """

    def __init__(
        self,
        run: RunContext,
        loader: ExperienceLoader,
        learning_rate: LearningRate,
        algorithm: Any,
        callbacks: CallbackHandler,
    ) -> None:
        self._run, self._loader, self._learning_rate = run, loader, learning_rate
        self._stop_early = algorithm.stop_early if offers(algorithm, StopsEarly) else None
        self._callbacks = callbacks

    def update_on(self, experience: Experience) -> list[dict[str, Any]]:
        """Make every update on an experience; returns a record of each.

        Raises:
            NonFiniteError: a loss or a gradient is not finite.
            EmptyExperienceError: there is no example, and there was none in too many experiences before.
        """
        run = self._run
        if not experience.steps:
            return [self._skip(experience)]
        run.state.empty_in_row = 0
        accelerator, engine = run.accelerator, run.engine
        records: list[dict[str, Any]] = []
        micro_batches: list[MicroBatch] = []
        tally = UpdateTally()
        enough = False
        for epoch in range(run.config.epochs_per_experience):
            batches = _batches_of_updates(len(experience.steps), run.config)
            for micro_batch in self._loader.micro_batches(experience, epoch):
                if enough:
                    continue  # Accelerate's loaders must be exhausted
                if not micro_batches:
                    return_freed_memory(accelerator.device)
                micro_batches.append(micro_batch)
                with accelerator.accumulate(engine.prepared):
                    loss, logs = engine.prepared(micro_batch.batch)
                    tally.add(loss, logs, micro_batch.loss_weight)
                    if accelerator.sync_gradients:
                        # All losses of the update are computed; with DeepSpeed, the backward pass also steps.
                        means = tally.reduce(accelerator, self._callbacks.raise_failure)
                        self._check_finite(means["loss"], None, micro_batches)
                    engine.backward(loss * micro_batch.loss_weight)
                    if accelerator.sync_gradients:
                        records.append(self._finish(experience, means, micro_batches))
                        run.state.batch += next(batches)
                        tally, micro_batches = UpdateTally(), []
                        # The record is the same on all processes, so they agree.
                        enough = self._stop_early is not None and self._stop_early(records[-1])
        return records

    def _finish(
        self, experience: Experience, means: Mapping[str, float], micro_batches: Sequence[MicroBatch]
    ) -> dict[str, Any]:
        run, lr = self._run, self._learning_rate.value
        grad_norm = run.engine.step(
            run.config.max_grad_norm, lambda norm: self._check_finite(means["loss"], norm, micro_batches)
        )
        run.state.update += 1
        record = {"step": experience.index + 1, "update": run.state.update, **means, "grad_norm": grad_norm, "lr": lr}
        self._callbacks.call("on_update", record)
        return record

    def _check_finite(self, loss: float, grad_norm: float | None, micro_batches: Sequence[MicroBatch]) -> None:
        """Stop before an update that would ruin the weights, and write this process's batches to ``non_finite/``.

        Args:
            loss: the update's loss, the mean over all processes.
            grad_norm: the norm of its whole gradient; None if not known yet.
            micro_batches: the update's micro-batches on this process.

        Raises:
            NonFiniteError: the loss, or the norm of the gradient, is not finite.
        """
        run = self._run
        # With fp16, the scaler handles overflowing gradients: it skips the update and lowers the scale.
        norm = 0.0 if grad_norm is None or run.accelerator.scaler is not None else grad_norm
        if math.isfinite(loss) and math.isfinite(norm):
            return
        update, folder = run.state.update + 1, run.folder.path / "non_finite"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"update-{update:06d}-process-{run.accelerator.process_index}.json"
        batches = [{"share": one.loss_weight, "batch": repr(one.batch)} for one in micro_batches]
        path.write_text(json.dumps({"loss": repr(loss), "grad_norm": repr(grad_norm), "batches": batches}, indent=2))
        gradient = "" if grad_norm is None else f" and gradient norm {grad_norm}"
        raise NonFiniteError(
            f"update {update} has loss {loss}{gradient}; it was not made. "
            f"Its batches are in {folder}, the last good weights in {run.folder.checkpoints}"
        )

    def _skip(self, experience: Experience) -> dict[str, Any]:
        """The record of a training step without an update: it still has its rewards, under the last update's number.

        Raises:
            EmptyExperienceError: there were too many such training steps in a row.
        """
        run = self._run
        run.state.empty_in_row += 1
        run.display.say(
            f"step {experience.index + 1}: {len(experience.graphs)} episodes yielded no training examples "
            f"(rewards that tie or are missing, or equal probes), so no update"
        )
        if run.state.empty_in_row >= run.config.max_empty_experiences:
            on_main(run.accelerator, lambda: run.folder.write_rollouts(experience.index + 1, experience.graphs))
            raise EmptyExperienceError(
                f"{run.state.empty_in_row} experiences in a row yielded no training examples "
                f"(training.max_empty_experiences); their episodes are in {run.folder.path / 'rollouts'}"
            )
        return {"step": experience.index + 1, "update": run.state.update, "lr": self._learning_rate.value}


def _batches_of_updates(num_examples: int, config: TrainingConfiguration) -> Iterator[int]:
    """The number of batches in each update of one pass over an experience."""
    left = math.ceil(num_examples / config.batch_size)
    while left > 0:
        yield min(config.gradient_accumulation_steps, left)
        left -= config.gradient_accumulation_steps
