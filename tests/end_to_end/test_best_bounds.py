"""A run whose best evaluation is out of bounds ends with the best one within, resumed or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from astra_accel.training.trainer import AccelTrainer
from tests.helpers.processes import run_processes
from tests.helpers.runs import checkpoint_weights, metrics, timeless, train_tiny

PERPLEXITY, FACTOR = "probe_perplexity/median", 1.5
FIELDS = {
    "training.lr": "3e-2",
    "training.eval_steps": "1",
    "training.save_steps": "1",
    "training.save_total_limit": "null",
    "training.num_eval_episodes": "4",
    "training.best_metric": PERPLEXITY,
    "training.best_bounds": json.dumps({PERPLEXITY: FACTOR, "diversity/self_bleu": {"min": 0.5}}),
    "evaluation.tree_depth": "3",
    "rollout.tree_depth": "1",
}


def train(folder: Path, steps: int, resume: Path | None = None) -> AccelTrainer:
    overrides = [part for name, value in FIELDS.items() for part in (f"--{name}", value)]
    return train_tiny(folder, *overrides, "--training.training_steps", str(steps), resume=resume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AccelTrainer]:
    folder = tmp_path_factory.mktemp("bounded") / "run"
    return folder, train(folder, 4)


def evaluations(run: Path) -> dict[int, float]:
    """The perplexity after each step, the untrained tester's at 0."""
    return {line["step"]: line[f"eval/{PERPLEXITY}"] for line in metrics(run)}


def test_the_tester_is_the_best_within_bounds(trained: tuple[Path, AccelTrainer]) -> None:
    run, trainer = trained
    found = evaluations(run)
    untrained = found.pop(0)
    within = {step: value for step, value in found.items() if value <= FACTOR * untrained}
    best = max(within, key=lambda step: within[step])

    assert max(found.values()) > FACTOR * untrained, "the best is within bounds, so this shows nothing"
    assert trainer.state.best_step == best
    assert trainer.state.best_value == within[best]
    tester, last = load_file(run / "tester" / "adapter_model.safetensors"), checkpoint_weights(run, 4)
    chosen = sorted(float(tensor.double().sum()) for tensor in checkpoint_weights(run, best).values())
    assert sorted(float(tensor.double().sum()) for tensor in tester.values()) == chosen
    assert sorted(float(tensor.double().sum()) for tensor in last.values()) != chosen


def test_an_evaluation_is_as_deep_as_configured(trained: tuple[Path, AccelTrainer]) -> None:
    _, trainer = trained
    sampler = trainer.harness.sampler

    def turns(graph: object) -> int:
        children = graph.children  # type: ignore[attr-defined]
        return 1 + turns(children[0]) if children else 0

    assert turns(sampler.eval_rollout(0)) == 3
    assert turns(sampler.rollout(0)) == 1


def _on_one_of_several(folder: Path) -> tuple[dict[str, float] | None, int | None]:
    trainer = train(folder, 2)
    return trainer.state.untrained, trainer.state.best_step


@pytest.mark.slow
def test_two_processes_choose_the_same(trained: tuple[Path, AccelTrainer], tmp_path: Path) -> None:
    run, trainer = trained
    found = run_processes(2, _on_one_of_several, tmp_path / "two")

    assert found[0] == found[1]
    assert found[0] == (pytest.approx(trainer.state.untrained, rel=1e-4), trainer.state.best_step)
    assert [evaluations(tmp_path / "two")[step] for step in (1, 2)] == pytest.approx(
        [evaluations(run)[step] for step in (1, 2)], rel=1e-3
    )


def test_a_resumed_run_is_the_same_run(trained: tuple[Path, AccelTrainer], tmp_path: Path) -> None:
    run, trainer = trained
    train(tmp_path / "run", 2)
    resumed = train(tmp_path / "run", 4, resume=tmp_path / "run" / "checkpoints" / "step-000002")

    assert resumed.state == trainer.state
    assert timeless(tmp_path / "run") == timeless(run)
    weights, expected = checkpoint_weights(tmp_path / "run", 4), checkpoint_weights(run, 4)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
