"""Updates in bf16 stay finite, and their losses follow those in float32, under every launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.launches import SHARDED
from tests.helpers.processes import run_processes
from tests.helpers.runs import metrics, train_tiny

UPDATES = 50
BAND = 0.02
"""Nats; the losses are about log 2. A bf16 number is off by up to 1/256 of itself, so a probe's log-prob of 100 nats by
some hundredths, of which DPO's beta takes a tenth; what the weights differ by after 50 updates comes on top."""
SETTINGS = ["--training.eval_steps", "null", "--training.save_steps", "null"]
LORA, FULL = ["--training.lr", "1e-4"], ["--lora", "null", "--training.lr", "1e-5"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [LORA, FULL], ids=["lora", "full"])
def test_losses_in_bf16_follow_those_in_float32(variant: list[str], tmp_path: Path) -> None:
    losses = {}
    for precision in ("no", "bf16"):
        _train(tmp_path / precision, "ddp", precision, "30", variant)
        losses[precision] = _losses(tmp_path / precision)
    assert len(losses["bf16"]) >= UPDATES
    _assert_near(losses["bf16"], losses["no"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lora", "full"])
@pytest.mark.parametrize("kind", SHARDED)
def test_sharded_runs_in_bf16_follow_one_process_in_float32(kind: str, variant: str, tmp_path: Path) -> None:
    """Rollouts are in the type that the launch gathers weights in, bf16 where DDP's are in float32."""
    options = LORA if variant == "lora" else FULL
    run_processes(1, _train, tmp_path / "one", "ddp", "no", "6", options)
    run_processes(2, _train, tmp_path / "two", kind, "bf16", "6", options)
    _assert_near(_losses(tmp_path / "two"), _losses(tmp_path / "one"))


def _train(folder: Path, kind: str, precision: str, steps: str, options: Sequence[str]) -> None:
    settings = [*SETTINGS, "--training.training_steps", steps, "--training.mixed_precision", precision]
    train_tiny(folder, *settings, *options, launch_kind=kind)


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


def _assert_near(found: list[float], expected: list[float]) -> None:
    assert all(math.isfinite(loss) for loss in found)
    differences = [abs(one - other) for one, other in zip(found, expected, strict=True)]
    assert max(differences) < BAND
    assert max(differences) > 1e-6  # it was another precision
