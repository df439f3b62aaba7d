"""The state of a run of the plain system, to be saved and loaded without a trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed.engine import make_engine
from astra_accel.distributed.step_module import StepModule
from astra_accel.training.checkpoint.layout import TrainerState, Training, checkpoint_name
from astra_accel.training.checkpoint.save import CheckpointSaver
from astra_accel.training.checkpoint.verify import verify_checkpoint
from astra_accel.training.optim import LearningRate, build_optimizer
from tests.helpers.launches import make_launch, step_on
from tests.helpers.plain import PlainAlgorithm, PlainStep, build_plain, reset_accelerate

FILES = {
    "config.yaml",
    "manifest.json",
    "optimizer.pt",
    "random_states_0.pt",
    "trained.safetensors",
    "trainer_state.json",
}
"""Of a checkpoint that one process wrote."""


def read_state(path: Path) -> TrainerState:
    """How far a checkpoint was, once it is sure that it is whole."""
    verify_checkpoint(path)
    return TrainerState(**json.loads((path / "trainer_state.json").read_text()))


def save_checkpoint(training: Training, folder: Path) -> Path:
    """Write a checkpoint of the current step, and delete none."""
    config = TrainingConfiguration(save_total_limit=None)
    CheckpointSaver(training.engine.accelerator, folder, config).save(training)
    return folder / checkpoint_name(training.state.step)


def build(seed: int = 0, launch_kind: str = "ddp", **settings: Any) -> Training:
    """A run before its first update."""
    reset_accelerate()
    config = TrainingConfiguration(
        **{"lr": 0.1, "lr_scheduler": "cosine", "warmup_steps": 2, "training_steps": 20} | settings
    )
    sampler, algorithm = build_plain(seed)
    accelerator = make_launch(launch_kind, config)
    module = StepModule(sampler.system, algorithm)
    optimizer = build_optimizer(config, sampler.system.parameters())
    learning_rate = LearningRate(config, optimizer)
    engine = make_engine(accelerator, module, optimizer, config)
    return Training(engine, learning_rate, TrainerState(), "training:\n  lr: 0.1\n")


def update(training: Training, count: int = 1) -> None:
    """Make so many updates, each a training step."""
    for _ in range(count):
        steps = [PlainStep(state, state % 5, (state + 1) % 5, 1.0) for state in range(4)]
        step_on(training.engine, [PlainAlgorithm.collate_fn(steps)])
        training.learning_rate.advance(0.0)
        training.state.step += 1
        training.state.update += 1


def contents(training: Training) -> tuple[Any, ...]:
    """Everything that a checkpoint restores, as bytes."""
    weights = {
        name: tensor.detach().numpy().tobytes() for name, tensor in training.engine.module.trained_state().items()
    }
    states = {
        (index, name): torch.as_tensor(value).numpy().tobytes()
        for index, state in training.engine.optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }
    return weights, states, training.engine.optimizer.state_dict()["param_groups"], training.learning_rate.state_dict()
