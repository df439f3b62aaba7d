"""A run on weights of 4 bits is like any other: taken up again it ends with the same bits, and it is the same on two
processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from astra_accel.models.loading.tiny import build_tiny
from tests.helpers.processes import ProcessFailure, run_processes
from tests.helpers.runs import checkpoint_weights, largest_difference, rollouts, train_tiny

pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")

QLORA = ["--tester.quantization", "nf4", "--target.quantization", "nf4", "--training.eval_steps", "null"]
SHORT = [*QLORA, "--training.training_steps", "2", "--training.save_steps", "1"]


def test_a_resumed_run_ends_with_the_same_bits_and_its_tester_is_a_plain_adapter(tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    train_tiny(whole, *SHORT)
    train_tiny(other, *SHORT, resume=whole / "checkpoints" / "step-000001")
    final = checkpoint_weights(whole, 2)
    assert largest_difference(final, checkpoint_weights(other, 2)) == 0
    assert largest_difference(final, checkpoint_weights(whole, 1)) > 0
    assert all("lora_" in name and tensor.dtype == torch.float32 for name, tensor in final.items())
    loaded = PeftModel.from_pretrained(build_tiny()[0], str(whole / "tester"))
    assert {name for name, _ in loaded.named_parameters() if "lora_" in name}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero1", "zero2"])
def test_two_processes_train_it_as_one(kind: str, tmp_path: Path) -> None:
    run_processes(1, _train, tmp_path / "one", "ddp")
    run_processes(2, _train, tmp_path / "two", kind)
    assert rollouts(tmp_path / "one") == rollouts(tmp_path / "two")
    one, two = (load_file(tmp_path / run / "tester" / "adapter_model.safetensors") for run in ("one", "two"))
    assert largest_difference(one, two) < 1e-5
    assert max(float(tensor.abs().max()) for tensor in two.values()) > 0


@pytest.mark.slow
def test_zero_3_splits_the_tester_alone(tmp_path: Path) -> None:
    """So a target of 4 bits is as good as anywhere."""
    of_target = ["--tester.quantization", "null"]
    run_processes(1, _train, tmp_path / "one", "ddp", of_target)
    run_processes(2, _train, tmp_path / "two", "zero3", of_target)
    assert rollouts(tmp_path / "one") == rollouts(tmp_path / "two")
    one, two = (load_file(tmp_path / run / "tester" / "adapter_model.safetensors") for run in ("one", "two"))
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_a_tester_of_4_bits_under_zero_3_is_refused_before_weights_load(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailure, match=r"tester\.quantization is 'nf4', but the launch is DeepSpeed ZeRO-3"):
        run_processes(2, _train, tmp_path, "zero3")


def _train(folder: Path, kind: str, overrides: Sequence[str] = ()) -> None:
    train_tiny(folder, *SHORT, *overrides, launch_kind=kind)
