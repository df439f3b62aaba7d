"""Updates in bf16 stay finite, and their losses follow those in float32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers.runs import metrics, train_tiny

UPDATES = 50
BAND = 0.02
"""Nats; the losses are about log 2. A bf16 number is off by up to 1/256 of itself, so a probe's log-prob of 100 nats by
some hundredths, of which DPO's beta takes a tenth; what the weights differ by after 50 updates comes on top."""


@pytest.mark.parametrize(
    "variant",
    [["--training.lr", "1e-4"], pytest.param(["--lora", "null", "--training.lr", "1e-5"], marks=pytest.mark.slow)],
    ids=["lora", "full"],
)
def test_losses_in_bf16_follow_those_in_float32(variant: list[str], tmp_path: Path) -> None:
    settings = ["--training.training_steps", "30", "--training.eval_steps", "null", "--training.save_steps", "null"]
    settings += variant
    losses = {}
    for precision in ("no", "bf16"):
        train_tiny(tmp_path / precision, *settings, "--training.mixed_precision", precision)
        losses[precision] = [line["loss"] for line in metrics(tmp_path / precision)]
    assert len(losses["bf16"]) >= UPDATES
    assert all(math.isfinite(loss) for loss in losses["bf16"])
    differences = [abs(one - other) for one, other in zip(losses["no"], losses["bf16"], strict=True)]
    assert max(differences) < BAND
    assert max(differences) > 1e-6  # it was another precision
