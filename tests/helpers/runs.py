"""Runs that the tests compare, and how to read what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from astra_accel import AccelTrainer, RunConfiguration, TrainingConfiguration
from astra_accel.jobs.train import build_trainer
from tests.helpers.launches import make_launch
from tests.helpers.plain import PlainAlgorithm, build_plain, reset_accelerate

ROOT = Path(__file__).parents[2]
TINY_DPO = ROOT / "examples" / "configs" / "tiny_dpo.yaml"

Weights = dict[str, torch.Tensor]


def train_plain(
    output_dir: Path,
    resume: Path | str | None = None,
    launch_kind: str = "ddp",
    algorithm_class: type[PlainAlgorithm] = PlainAlgorithm,
    **settings: Any,
) -> Weights:
    """Train the plain system with ``AccelTrainer`` on the processes that there are; its weights afterwards."""
    reset_accelerate()
    config = TrainingConfiguration(
        **{"output_dir": output_dir, "lr": 0.05, "batch_size": 4, "training_steps": 6, "sample_steps": None} | settings
    )
    sampler, _ = build_plain()
    algorithm = algorithm_class(sampler.system)
    trainer = AccelTrainer(config, sampler, algorithm, accelerator=make_launch(launch_kind, config))
    trainer.train(resume)
    return {name: tensor.detach().clone() for name, tensor in trainer.engine.trained_state()}


def train_tiny(
    output_dir: Path,
    *overrides: str,
    resume: Path | str | None = None,
    config: Path = TINY_DPO,
    launch_kind: str = "ddp",
) -> AccelTrainer:
    """Train ``tiny_dpo.yaml``, or another, with overrides on the processes that there are; its trainer afterwards."""
    reset_accelerate()
    run_config = RunConfiguration.load(config, ["--training.output_dir", str(output_dir), *overrides])
    trainer, _ = build_trainer(run_config, resume, accelerator=make_launch(launch_kind, run_config.training))
    trainer.train(resume)
    return trainer


def launch(
    script: str, *arguments: str | Path, accelerate_config: str | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run an example as a user would, in a process of its own; its output as text."""
    process = start(script, *arguments, accelerate_config=accelerate_config)
    with process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def start(script: str, *arguments: str | Path, accelerate_config: str | None = None) -> subprocess.Popen[str]:
    """Start an example as a user would, in a process of its own, and leave it running."""
    command = [sys.executable, str(ROOT / "examples" / script)]
    if accelerate_config is not None:
        config_file = ROOT / "accelerate_configs" / f"{accelerate_config}.yaml"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
        command = [*launcher, "--config_file", str(config_file), *command[1:]]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def checkpoint_weights(run: Path, step: int) -> Weights:
    """The trained weights of a checkpoint of a run."""
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "trained.safetensors")


def saved_tester(run: Path) -> Weights:
    """The tester that a finished run saved: whole, however its launch spread the weights."""
    return {
        f"{file.stem}.{name}": tensor
        for file in (run / "tester").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def largest_difference(one: Weights, other: Weights) -> float:
    """The largest absolute difference between two sets of weights of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def rollouts(run: Path, columns: Sequence[str] = ("episode", "path", "context", "probe", "response")) -> list[Any]:
    """The rollouts of every training step of a run, in order."""
    return [pq.read_table(file, columns=list(columns)).to_pylist() for file in sorted((run / "rollouts").glob("*"))]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without how long things took."""
    times = ("seconds/", "speed/")
    return [{name: value for name, value in line.items() if not name.startswith(times)} for line in metrics(run)]


def assert_same_figures(run: Path, other: Path, tolerance: float, without: str | None = None) -> None:
    """Compare ``metrics.jsonl`` of two runs within a tolerance, but for times and what begins like ``without``."""
    for line, expected in zip(timeless(run), timeless(other), strict=True):
        assert line.keys() == expected.keys()
        names = [name for name in line if without is None or not name.startswith(without)]
        if line["update"] == 1 and "dpo/reward_accuracy" in names:
            # The tester is still its baseline: rounding says which of two probes it favours more.
            names.remove("dpo/reward_accuracy")
        found, wanted = ({name: figures[name] for name in names} for figures in (line, expected))
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)
