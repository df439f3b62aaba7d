"""The updates on an experience."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from astra_accel.distributed.collectives import on_main
from astra_accel.errors import NonFiniteError
from astra_accel.experience.loader import Experience, MicroBatch
from astra_accel.models.memory import return_freed_memory
from astra_accel.training.metrics import UpdateTally

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer


def check_finite(
    trainer: AccelTrainer, loss: float, grad_norm: float | None, micro_batches: Sequence[MicroBatch]
) -> None:
    """Stop before an update that would ruin the weights, and write this process's batches to ``non_finite/``.

    Args:
        trainer: of the run.
        loss: of the update, the mean over all processes.
        grad_norm: of its whole gradient; None if that is not known yet.
        micro_batches: of the update, on this process.

    Raises:
        NonFiniteError: the loss, or the norm of the gradient, is not finite.
    """
    # With fp16, an overflow of gradients is left to the scaler: it skips the update and scales less.
    norm = 0.0 if grad_norm is None or trainer.accelerator.scaler is not None else grad_norm
    if torch.isfinite(torch.tensor([loss, norm])).all():
        return
    update, folder = trainer.state.update + 1, trainer.folder.path / "non_finite"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"update-{update:06d}-process-{trainer.accelerator.process_index}.json"
    batches = [{"share": micro_batch.loss_weight, "batch": repr(micro_batch.batch)} for micro_batch in micro_batches]
    path.write_text(json.dumps({"loss": repr(loss), "grad_norm": repr(grad_norm), "batches": batches}, indent=2))
    gradient = "" if grad_norm is None else f" and gradient norm {grad_norm}"
    raise NonFiniteError(
        f"update {update} has loss {loss}{gradient}; it was not made. "
        f"Its batches are in {folder}, the last good weights in {trainer.folder.checkpoints}"
    )


class EmptyExperienceError(RuntimeError):
    """Too many experiences in a row gave no training example."""


def update_on(trainer: AccelTrainer, experience: Experience) -> list[dict[str, Any]]:
    """Make every update of an experience; a record of each. All processes together.

    Raises:
        NonFiniteError: a loss or a gradient is not finite.
        EmptyExperienceError: there is no example, nor was there any in the experiences before.
    """
    if not experience.steps:
        return _skip(trainer, experience)
    trainer.state.empty_in_row = 0
    accelerator, engine = trainer.accelerator, trainer.engine
    records: list[dict[str, Any]] = []
    micro_batches: list[MicroBatch] = []
    tally = UpdateTally()
    enough = False
    num_batches = math.ceil(len(experience.steps) / trainer.config.batch_size)
    with trainer.stopwatch.phase("update"):
        for epoch in range(trainer.config.epochs_per_experience):
            left = num_batches
            for micro_batch in trainer.loader.of(experience, epoch):
                if enough:
                    continue  # Accelerate's loaders have to come to their end
                if not micro_batches:
                    return_freed_memory(accelerator.device)
                micro_batches.append(micro_batch)
                with accelerator.accumulate(engine.prepared):
                    loss, logs = engine.prepared(micro_batch.batch)
                    tally.add(loss, logs, micro_batch.loss_weight)
                    if accelerator.sync_gradients:
                        # All losses of the update are there, and with DeepSpeed the backward pass steps as well.
                        means = tally.reduce(accelerator, trainer.callbacks.raise_failure)
                        check_finite(trainer, means["loss"], None, micro_batches)
                    engine.backward(loss * micro_batch.loss_weight)
                    if accelerator.sync_gradients:
                        records.append(_finish_update(trainer, means, micro_batches, experience))
                        of_update = min(trainer.config.gradient_accumulation_steps, left)
                        left -= of_update
                        trainer.state.batch += of_update
                        tally, micro_batches = UpdateTally(), []
                        enough = _stop_early(trainer, records[-1])
    return records


def _finish_update(
    trainer: AccelTrainer, means: Mapping[str, float], micro_batches: Sequence[MicroBatch], experience: Experience
) -> dict[str, Any]:
    lr = trainer.learning_rate.value
    grad_norm = trainer.engine.step(
        trainer.config.max_grad_norm, lambda norm: check_finite(trainer, means["loss"], norm, micro_batches)
    )
    trainer.state.update += 1
    record = {"step": experience.index + 1, "update": trainer.state.update, **means, "grad_norm": grad_norm, "lr": lr}
    trainer.callbacks.call("on_update", record)
    return record


def _stop_early(trainer: AccelTrainer, record: Mapping[str, Any]) -> bool:
    """Whether the algorithm wants no more updates on an experience; all processes have the same record."""
    stop_early = getattr(trainer.harness.algorithm, "stop_early", None)
    return stop_early is not None and stop_early(record)


def _skip(trainer: AccelTrainer, experience: Experience) -> list[dict[str, Any]]:
    state, folder = trainer.state, trainer.folder
    state.empty_in_row += 1
    trainer.display.say(
        f"step {experience.index + 1}: no training example came of {len(experience.graphs)} episodes "
        f"(rewards that tie or are missing, or equal probes), so no update"
    )
    if state.empty_in_row >= trainer.config.max_empty_experiences:
        on_main(trainer.accelerator, lambda: folder.write_rollouts(experience.index + 1, experience.graphs))
        raise EmptyExperienceError(
            f"{state.empty_in_row} experiences in a row gave no training example "
            f"(training.max_empty_experiences); their episodes are in {folder.path / 'rollouts'}"
        )
    # A training step without an update still tells its rewards, under the number of the last update.
    return [{"step": experience.index + 1, "update": state.update, "lr": trainer.learning_rate.value}]
