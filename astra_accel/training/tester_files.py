"""Writes a tester: its weights, its tokenizer and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from astra_accel.core.optional import SavesTester, offers
from astra_accel.files.atomic import README, write_atomically
from astra_accel.files.run_folder import METRICS
from astra_accel.sharing.model_card import Origin, model_card, weights_in
from astra_accel.training.checkpoint.layout import WEIGHTS
from astra_accel.training.run_context import RunContext


def write_tester(
    run: RunContext, system: Any, config_yaml: str, path: Path, weights: Mapping[str, torch.Tensor] | None
) -> None:
    """Write the current tester. Called on one process.

    Args:
        run: the run that trained it.
        system: holds it.
        config_yaml: the run's configuration.
        path: the folder to write to.
        weights: its weights, if the process does not hold all of its own.
    """
    path.mkdir(parents=True, exist_ok=True)
    if offers(system, SavesTester):
        system.save_pretrained(path, **({} if weights is None else {"state_dict": weights}))
    else:
        save_file(run.engine.gathered_state() if weights is None else dict(weights), path / WEIGHTS)
    figures = asdict(replace(run.state, callbacks=None, untrained=None, not_best=None))
    origin = Origin.of_run(config_yaml, figures, run.folder.path / METRICS)
    write_atomically(path / README, model_card(origin, weights_in(path)))
