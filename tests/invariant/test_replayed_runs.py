"""With a replay, a curriculum and examples too, a run is the same on any number of processes, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.launches import SHARDED
from tests.helpers.processes import run_processes
from tests.helpers.replayed import ReplayedAlgorithm
from tests.helpers.runs import (
    ROOT,
    Weights,
    assert_same_figures,
    checkpoint_weights,
    largest_difference,
    metrics,
    rollouts,
    saved_tester,
    timeless,
    train_plain,
    train_tiny,
)

OFF_POLICY = ("dpo", "ctb", "tb", "mle")
PRIORITIES = ("return", "recency", "uniform")
TINY = (
    *("--training.save_steps", "3", "--training.eval_steps", "null"),
    *("--training.replay.size", "10", "--training.replay.share", "0.6", "--training.replay.max_draws", "2"),
    *("--training.curriculum.share", "0.4", "--training.curriculum.figure", "naturalness"),
    # Shown in the first four steps of six: a run that continues from the third shows them once more.
    *("--rollout.few_shot", '{"examples": ["No.", "Why me?", "Go away!"], "number": 2, "steps": 4}'),
)

# CTB's loss is so steep that a few of its gradients are rounding beside the others. Adam divides by their size and so
# makes whole steps of them; with plain gradient descent weights differ as gradients do.
STEEP = (
    *("--training.optimizer", "sgd"),
    *("--training.lr", "0.0005"),
    *("--training.max_grad_norm", "null"),
)


def config_of(name: str) -> Path:
    """The run of a tiny tester by an algorithm."""
    return ROOT / "examples" / "configs" / f"tiny_{name}.yaml"


def train(folder: Path, kind: str, priority: str, resume: Path | None = None) -> Weights:
    """Six training steps of uneven examples, of which some tie and the best are found again and again."""
    limits = {"size": 7, "share": 0.5, "max_overlap": 0.8, "min_fluency": -3.5, "max_draws": 3}
    settings = {"save_steps": 3, "replay": {"priority": priority, **limits}}
    return train_plain(folder, resume, kind, ReplayedAlgorithm, **settings)


def train_and_resume(folder: Path, kind: str, priorities: tuple[str, ...]) -> dict[str, tuple[Weights, Weights]]:
    found = {}
    for priority in priorities:
        whole, again = folder / priority, folder / f"{priority} again"
        middle = whole / "checkpoints" / "step-000003"
        found[priority] = train(whole, kind, priority), train(again, kind, priority, middle)
    return found


@pytest.mark.parametrize(
    ("processes", "kind", "priorities"),
    [
        (2, "ddp", PRIORITIES[:1]),
        pytest.param(2, "ddp", PRIORITIES[1:], marks=pytest.mark.slow),
        *(pytest.param(2, kind, PRIORITIES, marks=pytest.mark.slow) for kind in SHARDED),
        pytest.param(4, "fsdp2", PRIORITIES, marks=pytest.mark.slow),
    ],
)
def test_several_processes_make_the_run_of_one_also_when_resumed(
    processes: int, kind: str, priorities: tuple[str, ...], tmp_path: Path
) -> None:
    alone = {priority: train(tmp_path / "one" / priority, "ddp", priority) for priority in priorities}
    for found in run_processes(processes, train_and_resume, tmp_path, kind, priorities):
        for priority, (whole, resumed) in found.items():
            assert largest_difference(whole, alone[priority]) < 1e-5
            assert largest_difference(whole, resumed) == 0
    for priority in priorities:
        one, several = tmp_path / "one" / priority, tmp_path / priority
        assert_same_figures(several, one, 1e-4)
        for step in (3, 6):
            file = Path("checkpoints") / f"step-{step:06d}" / "replay.jsonl"
            assert (one / file).read_bytes() == (several / file).read_bytes()
        assert timeless(tmp_path / f"{priority} again") == [line for line in timeless(several) if line["step"] > 3]
        # Its replay is full, drawn from, and makes a difference.
        last = metrics(one)[-1]
        assert last["replay/size"] == 7
        assert 3 < last["replay/drawn"] <= 7
        assert largest_difference(alone[priority], train_plain(tmp_path / "without" / priority)) > 1e-3


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        pytest.param(name, packing, marks=() if (name, packing) == ("dpo", "auto") else pytest.mark.slow)
        for name in OFF_POLICY
        for packing in ("auto", "none")
    ],
)
def test_a_resumed_run_of_language_models_ends_with_the_same_bits(name: str, packing: str, tmp_path: Path) -> None:
    """Conversations go to the checkpoint and come back."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    options = (*TINY, "--compute.packing", packing)
    train_tiny(whole, *options, config=config_of(name))
    train_tiny(again, *options, config=config_of(name), resume=whole / "checkpoints" / "step-000003")
    assert largest_difference(checkpoint_weights(whole, 6), checkpoint_weights(again, 6)) == 0
    assert timeless(again) == [line for line in timeless(whole) if line["step"] > 3]
    assert rollouts(again) == rollouts(whole)[3:]
    for name in ("replay.jsonl", "curriculum.json"):
        files = [run / "checkpoints" / "step-000006" / name for run in (whole, again)]
        assert files[0].read_bytes() == files[1].read_bytes()
    last = metrics(whole)[-1]
    assert last["curriculum/repeated"] > 0
    assert last["replay/size"] == 10
    assert last["replay/drawn"] > 0
    assert last["replay/age"] > 0
    assert largest_difference(checkpoint_weights(whole, 6), checkpoint_weights(whole, 3)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", OFF_POLICY)
def test_language_models_are_trained_alike_on_two_processes_and_read_plainly(name: str, tmp_path: Path) -> None:
    limits = ("--training.replay.max_overlap", "0.5", "--training.replay.min_fluency", "-7")
    options = (*TINY, *limits, *(STEEP if name == "ctb" else ()))
    train_tiny(tmp_path / "packed", *options, config=config_of(name))
    train_tiny(tmp_path / "plain", *options, "--compute.packing", "none", config=config_of(name))
    for kind in ("ddp", "fsdp2"):
        run_processes(2, _train_tiny, tmp_path / kind, options, kind, name)
    weights = saved_tester(tmp_path / "packed")
    # The adapters' second halves began at 0.
    assert max(float(tensor.abs().max()) for part, tensor in weights.items() if "lora_B" in part) > 1e-3
    for run in ("plain", "ddp", "fsdp2"):
        assert rollouts(tmp_path / run) == rollouts(tmp_path / "packed")
        assert_same_figures(tmp_path / run, tmp_path / "packed", 1e-4)
        assert largest_difference(saved_tester(tmp_path / run), weights) < 1e-5


def _train_tiny(folder: Path, options: tuple[str, ...], kind: str, name: str) -> None:
    train_tiny(folder, *options, config=config_of(name), launch_kind=kind)


def train_from(folder: Path, source: Path) -> Weights:
    replay = {"size": 6, "share": 0.5, "source": source}
    return train_plain(folder, None, "ddp", ReplayedAlgorithm, save_steps=3, replay=replay)


@pytest.mark.slow
def test_two_processes_begin_with_what_another_run_kept_as_one_does(tmp_path: Path) -> None:
    train(tmp_path / "first", "ddp", "return")
    alone = train_from(tmp_path / "one", tmp_path / "first")
    for several in run_processes(2, train_from, tmp_path / "two", tmp_path / "first"):
        assert largest_difference(several, alone) < 1e-5
    assert_same_figures(tmp_path / "two", tmp_path / "one", 1e-4)
    file = Path("checkpoints") / "step-000003" / "replay.jsonl"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert metrics(tmp_path / "one")[0]["replay/drawn"] > 0


def test_a_checkpoint_without_a_replay_begins_with_an_empty_one_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_plain(tmp_path / "without", save_steps=3)
    train(tmp_path / "with", "ddp", "return", tmp_path / "without" / "checkpoints" / "step-000003")
    said = " ".join(capsys.readouterr().out.split())
    assert "has no replay.jsonl: the replay begins empty" in said
    assert metrics(tmp_path / "with")[0]["replay/drawn"] == 0
