"""However the models are run, it is the same run: what `compute` says changes speed and memory alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.nn.modules.module import register_module_forward_hook

from astra_accel.distributed.step_module import StepModule
from tests.helpers.plain import reset_accelerate
from tests.helpers.processes import run_processes
from tests.helpers.runs import (
    assert_same_figures,
    checkpoint_weights,
    largest_difference,
    rollouts,
    timeless,
    train_tiny,
)

# Two experiences of 12 pairs each, in batches of 8, twice: 8 updates.
SHORT = (
    *("--training.training_steps", "2"),
    *("--training.save_steps", "2"),
    *("--training.epochs_per_experience", "2"),
    *("--training.eval_steps", "null"),
)
IN_PARTS = ("--compute.token_budget", "150")  # one or two pairs; a tree of three is more


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process whose batches are stepped on whole, whatever they read."""
    run = tmp_path_factory.mktemp("whole")
    train_tiny(run, *SHORT, "--compute.token_budget", "1000000", "--compute.packing", "prefix_tree")
    reset_accelerate()
    return run


def assert_same_run(run: Path, other: Path) -> None:
    assert rollouts(run) == rollouts(other)
    assert len(timeless(run)) == 8
    assert_same_figures(run, other, 1e-5)
    trained, expected = checkpoint_weights(run, 2), checkpoint_weights(other, 2)
    assert largest_difference(trained, expected) < 2e-6
    # These began at 0: the weights did move.
    assert all(weight.abs().max() > 1e-4 for name, weight in trained.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "options",
    [
        ("--compute.packing", "none"),
        ("--compute.packing", "none", *IN_PARTS),
        ("--compute.activation_checkpointing", "true"),
        ("--compute.merge_adapter", "false"),
    ],
    ids=" ".join,
)
def test_it_is_the_same_run(options: tuple[str, ...], whole: Path, tmp_path: Path) -> None:
    train_tiny(tmp_path, *SHORT, *options)
    assert_same_run(tmp_path, whole)


def _num_steps_in_parts(output_dir: Path) -> int:
    """Train in parts; how often this process stepped."""
    steps: list[object] = []
    with register_module_forward_hook(lambda module, *_: steps.append(module) if type(module) is StepModule else None):
        train_tiny(output_dir, *SHORT, *IN_PARTS)
    return len(steps)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_updates_in_parts_are_those_of_whole_batches(processes: int, whole: Path, tmp_path: Path) -> None:
    """Parts are of unequal numbers of examples; on two processes also as many as the one with more parts has."""
    num_steps = set(run_processes(processes, _num_steps_in_parts, tmp_path))
    assert_same_run(tmp_path, whole)
    # As often as the other process, and more often than once a batch.
    assert len(num_steps) == 1
    assert num_steps.pop() > len(timeless(whole))
