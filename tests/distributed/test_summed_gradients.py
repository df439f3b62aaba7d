"""Gradients of several steps and processes are added up in float32, whatever the type of the forward."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from astra_accel import TrainingConfiguration
from astra_accel.distributed.engine import make_engine
from astra_accel.distributed.step_module import StepModule
from tests.helpers.launches import LAUNCHES, make_launch, step_on
from tests.helpers.plain import reset_accelerate
from tests.helpers.processes import run_processes

LARGE, SMALL, NUM_STEPS = 1.0, 2.0**-10, 16
"""A bf16 number has 8 bits: one of 1.0 to which a thousandth is added is 1.0 still, however many follow."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAUNCHES)
def test_many_small_gradients_beside_a_large_one_are_not_lost(kind: str, tmp_path: Path) -> None:
    """One step of process 0 has a gradient of 1, the 31 others of both processes 1/1024 each."""
    expected = LARGE + (2 * NUM_STEPS - 1) * SMALL
    for weights, norm in run_processes(2, _sum_up, tmp_path, kind):
        assert weights == pytest.approx([-expected] * len(weights), abs=1e-6)
        assert norm == pytest.approx(expected * len(weights) ** 0.5, rel=1e-5)


class Pull:
    """A step whose gradient is its batch."""

    def __init__(self) -> None:
        self.layer = torch.nn.Linear(8, 1, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def step(self, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.layer(batch.to(self.layer.weight.dtype)).sum(), {}


def _sum_up(folder: Path, kind: str) -> tuple[list[float], float]:
    """One update by plain gradient descent of rate 1; the weights afterwards, and the norm that was told."""
    reset_accelerate()
    config = TrainingConfiguration(
        output_dir=folder, mixed_precision="bf16", batch_size=2, max_grad_norm=None, gradient_accumulation_steps=1
    )
    accelerator = make_launch(kind, config)
    pull = Pull()
    system = SimpleNamespace(layer=pull.layer, parameters=pull.layer.parameters)
    optimizer = torch.optim.SGD(pull.layer.parameters(), lr=1.0)
    engine = make_engine(accelerator, StepModule(system, pull), optimizer, config)
    sizes = [LARGE if step == 0 and accelerator.is_main_process else SMALL for step in range(NUM_STEPS)]
    norm = step_on(engine, [torch.full((1, 8), size) for size in sizes])
    (weights,) = (tensor.flatten().tolist() for _, tensor in engine.trained_state())
    accelerator.wait_for_everyone()
    return weights, norm
