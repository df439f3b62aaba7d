"""Each algorithm makes the same updates however its examples, of unequal numbers of tokens, are read and dealt out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.processes import run_processes
from tests.helpers.runs import (
    ROOT,
    assert_same_figures,
    checkpoint_weights,
    largest_difference,
    rollouts,
    timeless,
    train_tiny,
)

ALGORITHMS = ["ipo", "ctb", "tb", "mle", "grpo", "rloo", "ppo"]  # DPO is in test_compute.py and test_processes.py
# Two passes over one experience, an update each: in the second the ratio counts. Plain gradient descent, so that
# weights differ as gradients do.
SHORT = (
    *("--training.training_steps", "1"),
    *("--training.epochs_per_experience", "2"),
    *("--training.save_steps", "1"),
    *("--training.optimizer", "sgd"),
    *("--training.max_grad_norm", "null"),
    *("--rollout.tester.max_new_tokens", "40"),
    *("--rollout.target.max_new_tokens", "2"),
)
# The square of whole probes' log-probs is far steeper than the other losses.
LEARNING_RATES = {"ctb": "0.0005", "tb": "0.0005"}
AT_ONCE = ("--training.batch_size", "128", "--compute.token_budget", "1000000", "--compute.packing", "prefix_tree")
ACCUMULATED = ("--training.batch_size", "8", "--training.gradient_accumulation_steps", "16")
PLAIN = ("--training.batch_size", "128", "--compute.token_budget", "1000000", "--compute.packing", "none")
IN_PARTS = ("--compute.token_budget", "300")


def train(folder: Path, name: str, *options: str) -> None:
    lr = LEARNING_RATES.get(name, "0.3")
    train_tiny(
        folder, *SHORT, "--training.lr", lr, *options, config=ROOT / "examples" / "configs" / f"tiny_{name}.yaml"
    )


def train_all(folder: Path, names: Sequence[str]) -> None:
    """Each algorithm, with updates of one batch in one packed forward a process."""
    for name in names:
        train(folder / name, name, *AT_ONCE)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process."""
    folder = tmp_path_factory.mktemp("at_once")
    train_all(folder, ALGORITHMS)
    return folder


def assert_same_run(run: Path, expected: Path) -> None:
    assert rollouts(run) == rollouts(expected)
    assert len(timeless(run)) == 2
    assert_same_figures(run, expected, 1e-4)
    assert largest_difference(checkpoint_weights(run, 1), checkpoint_weights(expected, 1)) < 5e-6


@pytest.mark.parametrize("name", ALGORITHMS)
def test_examples_differ_in_tokens_and_the_weights_move(name: str, at_once: Path) -> None:
    (nodes,) = rollouts(at_once / name, columns=["probe_tokens"])
    assert len({node["probe_tokens"] for node in nodes}) > 1
    # The adapters' second halves began at 0.
    trained = checkpoint_weights(at_once / name, 1)
    assert max(float(weight.abs().max()) for key, weight in trained.items() if "lora_B" in key) > 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_plain_forwards_of_accumulated_parts_make_the_same_updates(name: str, at_once: Path, tmp_path: Path) -> None:
    train(tmp_path, name, *ACCUMULATED, *IN_PARTS, "--compute.packing", "none")
    assert_same_run(tmp_path, at_once / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("options", [PLAIN, (*ACCUMULATED, *IN_PARTS)], ids=["plain", "parts"])
def test_so_does_either_alone(name: str, options: tuple[str, ...], at_once: Path, tmp_path: Path) -> None:
    train(tmp_path, name, *options)
    assert_same_run(tmp_path, at_once / name)


@pytest.mark.parametrize(
    "names", [["ppo"], pytest.param(["ipo", "ctb", "tb", "mle", "grpo", "rloo"], marks=pytest.mark.slow)]
)
def test_two_processes_make_the_same_updates(names: list[str], at_once: Path, tmp_path: Path) -> None:
    run_processes(2, train_all, tmp_path, names)
    for name in names:
        assert_same_run(tmp_path / name, at_once / name)
