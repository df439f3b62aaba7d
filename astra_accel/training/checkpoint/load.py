"""Reads a checkpoint. ``torch.load(weights_only=True)`` suffices for everything in it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from astra_accel.core.optional import HasRolloutState, offers
from astra_accel.distributed.engine import Engine
from astra_accel.experience.curriculum import Curriculum
from astra_accel.experience.replay import Replay
from astra_accel.training.checkpoint.layout import (
    CURRICULUM,
    OPTIMIZER,
    REPLAY,
    ROLLOUT_STATE,
    WEIGHTS,
    CheckpointError,
    TrainerState,
    Training,
    files_of_processes,
    has_replay,
    random_file,
    read_state,
)
from astra_accel.training.checkpoint.verify import WholeCheckpoint, whole


def load_checkpoint(training: Training, checkpoint: Path | WholeCheckpoint) -> TrainerState:
    """Restore weights, optimizer, schedule, what rollouts depend on, replay, curriculum and random states.

    Args:
        training: what to restore.
        checkpoint: a folder, which is verified first, or a verified checkpoint.

    Returns:
        The run's progress.

    Raises:
        CheckpointError: it is not a checkpoint, a file is damaged (named), or the weights are another model's.
    """
    engine, verified = training.engine, whole(checkpoint)
    path = verified.path
    load_weights(engine, verified)
    saved, *others = [
        torch.load(path / name, map_location="cpu", weights_only=True, mmap=engine.sharded)
        for name in files_of_processes(path, OPTIMIZER)
    ]
    state = saved["optimizer"]["state"]
    for other in others:
        state |= other["state"]
    engine.load_optimizer(saved["optimizer"]["param_groups"], state)
    training.learning_rate.load_state_dict(saved["learning_rate"])
    scaler = engine.accelerator.scaler
    if scaler is not None and saved["scaler"] is not None:
        scaler.load_state_dict(saved["scaler"])
    if offers(training.system, HasRolloutState) and (path / ROLLOUT_STATE).exists():
        training.system.load_rollout_state(torch.load(path / ROLLOUT_STATE, map_location="cpu", weights_only=True))
    if training.replay is not None and has_replay(path):
        _load_kept(training.replay, path / REPLAY)
    if training.curriculum is not None and (path / CURRICULUM).is_file():
        _load_kept(training.curriculum, path / CURRICULUM)
    own_states = path / random_file(engine.accelerator.process_index)
    if own_states.exists():  # A run resumed with more processes has none for the new ones.
        _restore_random_states(torch.load(own_states, weights_only=True))
    return read_state(path)


def load_weights(engine: Engine, checkpoint: Path | WholeCheckpoint) -> None:
    """Restore only the trained weights from a checkpoint.

    Raises:
        CheckpointError: as in :func:`load_checkpoint`.
    """
    path = whole(checkpoint).path
    own = engine.module.trained_state()
    with ExitStack() as files:
        saved: dict[str, Any] = {}  # the file that a weight is in
        for name in files_of_processes(path, WEIGHTS):
            try:
                file = files.enter_context(safe_open(path / name, framework="pt"))
            except SafetensorError as error:
                raise CheckpointError(f"{path / name} can't be read: {error}") from error
            saved |= dict.fromkeys(file.keys(), file)
        differing = sorted(set(saved) ^ set(own)) or [
            name for name, file in saved.items() if list(engine.shape(own[name])) != file.get_slice(name).get_shape()
        ]
        if differing:
            raise CheckpointError(
                f"{path} holds the weights of another model: {len(differing)} of them differ in name or shape "
                f"({', '.join(differing[:3])}, …)"
            )
        # In the order of one process's names, since some launches load collectively.
        engine.load_trained_state((name, saved[name].get_tensor(name)) for name in own)


def _load_kept(kept: Replay | Curriculum, file: Path) -> None:
    try:
        kept.load(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error


def _restore_random_states(states: Mapping[str, Any]) -> None:
    random.setstate((3, tuple(states["python"]), states["python_gauss"]))
    words = states["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, *states["numpy_rest"]))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
