"""A program written for the reference runs with the package's name changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_accel.models.loading import model_files
from astra_accel.models.loading.tiny import save_tiny
from tests.helpers.plain import reset_accelerate


@pytest.mark.parametrize("training_steps", [2, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_reference_example_runs(training_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls and arguments, in its order; the elisions filled in, and a tiny model as the embedded one.

    The long case makes all of the 1024 training steps of the example.
    """
    save_tiny(tmp_path / "model", "llama")
    monkeypatch.setattr(model_files, "embedded_model_path", lambda: tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    reset_accelerate()

    from astra_accel import Trainer, TrainingConfiguration
    from astra_accel.algorithms.dpo import DPO
    from astra_accel.methods.ast import ASTProblem, ASTSampler

    problem = ASTProblem()
    sampler = ASTSampler(problem, ["Good morning.", "It rains again."], tree_depth=1)
    algorithm = DPO(problem)
    config = TrainingConfiguration(
        lr=1e-3,
        batch_size=16,
        optimizer="adamw",
        gradient_accumulation_steps=1,
        training_steps=training_steps,
        num_episodes_per_experience=8,
    )
    trainer = Trainer(config, sampler, algorithm)
    trainer.train()

    assert trainer.state.step == training_steps
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "tester" / "adapter_model.safetensors").exists()
