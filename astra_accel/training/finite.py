"""An update whose loss or gradient is not finite is not made, and what it was made of is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from astra_accel.errors import NonFiniteError
from astra_accel.experience.loader import Shard

if TYPE_CHECKING:
    from astra_accel.training.trainer import AccelTrainer


def check_finite(trainer: AccelTrainer, loss: float, grad_norm: float, shards: Sequence[Shard]) -> None:
    """Stop before an update that would ruin the weights, and write this process's batches to ``non_finite/``.

    Raises:
        NonFiniteError: the loss, or the norm of the gradient, is not finite.
    """
    # With fp16 an overflow of gradients is the scaler's business: it skips the update and scales less.
    scaled = trainer.accelerator.scaler is not None
    finite = torch.isfinite(torch.tensor([loss, 0.0 if scaled else grad_norm])).all()
    if finite:
        return
    update, folder = trainer.state.update + 1, trainer.folder.path / "non_finite"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"update-{update:06d}-process-{trainer.accelerator.process_index}.json"
    batches = [{"share": shard.share, "batch": repr(shard.batch)} for shard in shards]
    path.write_text(json.dumps({"loss": repr(loss), "grad_norm": repr(grad_norm), "batches": batches}, indent=2))
    raise NonFiniteError(
        f"update {update} has loss {loss} and gradient norm {grad_norm}; it was not made. "
        f"Its batches are in {folder}, the last good weights in {trainer.folder.checkpoints}"
    )
