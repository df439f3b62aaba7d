"""The same run on any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.experience.collect import Harness
from tests.helpers.plain import PlainAlgorithm, PlainSampler, PlainSystem
from tests.helpers.processes import run_processes
from tests.helpers.runs import (
    TINY_DPO,
    assert_same_figures,
    checkpoint_weights,
    largest_difference,
    launch,
    rollouts,
    train_plain,
)


def test_tiny_dpo_is_the_same_run_on_one_and_on_two_processes(tmp_path: Path) -> None:
    """The launches of the README: the same rollouts to the letter, the same weights within 1e-5."""
    for processes in (1, 2):
        run = tmp_path / str(processes)
        result = launch(
            "train.py", "--config", TINY_DPO, "--training.output_dir", run, accelerate_config=f"cpu_{processes}"
        )
        assert result.returncode == 0, result.stderr
    one, two = tmp_path / "1", tmp_path / "2"
    assert len(rollouts(one)) == 6
    assert rollouts(one) == rollouts(two)
    for step in (3, 6):
        assert largest_difference(checkpoint_weights(one, step), checkpoint_weights(two, step)) < 1e-5
    # The weights did move, or their equality would say nothing.
    assert largest_difference(checkpoint_weights(one, 3), checkpoint_weights(one, 6)) > 1e-4
    # Evaluations sample with weights that differ by rounding, which may tip a single token.
    assert_same_figures(one, two, 1e-4, without="eval/")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The reference trajectory: the plain system, six training steps, on one process."""
    return run_processes(1, train_plain, tmp_path_factory.mktemp("plain"))[0]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_system_of_no_class_of_ours_trains_alike_on_several_processes(
    processes: int, one_process: dict, tmp_path: Path
) -> None:
    """A plain object with two modules, a sampler and an algorithm with the bare methods; uneven examples.

    Batches of 4 on up to 4 processes: the last batch of an experience leaves ranks without an example.
    """
    for weights in run_processes(processes, train_plain, tmp_path):
        assert largest_difference(weights, one_process) < 1e-5


@pytest.mark.slow
def test_accumulation_is_a_larger_batch(one_process: dict, tmp_path: Path) -> None:
    """Four batches of one example make the update of one batch of four, also where the last has fewer."""
    settings = {"batch_size": 1, "gradient_accumulation_steps": 4}
    (weights,) = run_processes(1, _train_plain_with, tmp_path / "1", settings)
    assert largest_difference(weights, one_process) < 1e-5
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2}
    for weights in run_processes(2, _train_plain_with, tmp_path / "2", settings):
        assert largest_difference(weights, one_process) < 1e-5


def _train_plain_with(output_dir: Path, settings: dict) -> dict:
    return train_plain(output_dir, **settings)


class _Signing(PlainAlgorithm):
    """Signs what it computes of a frozen model with the process that did; leaves out every third example."""

    def choose(self, steps: list) -> list[bool]:
        return [index % 3 > 0 for index in range(len(steps))]

    def precompute(self, steps: list) -> list:
        return [(step, torch.distributed.get_rank()) for step in steps]


def _collect_signed() -> tuple[list, list[int]]:
    system = PlainSystem()
    accelerator = make_accelerator(TrainingConfiguration())
    experience = Harness(PlainSampler(system), _Signing(system), 9, accelerator=accelerator).collect(0)
    return list(experience.steps), list(experience.trees)


@pytest.mark.slow
def test_what_frozen_models_say_is_asked_where_an_episode_was_rolled_out() -> None:
    """A process that remembers what it read in a rollout is the one that is asked about it."""
    (steps, trees), other = run_processes(2, _collect_signed)
    assert (steps, trees) == other
    assert len(set(trees)) > 3
    assert [process for _, process in steps] == [tree % 2 for tree in trees]
    system = PlainSystem()
    alone = Harness(PlainSampler(system), PlainAlgorithm(system), 9).collect(0)
    left = [index for index in range(len(alone.steps)) if index % 3 > 0]
    assert [step for step, _ in steps] == [alone.steps[index] for index in left]
    assert trees == [alone.trees[index] for index in left]
