"""Where bfloat16 is faster, on processors of either kind."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig

from astra_accel.models.loading import precision
from astra_accel.models.loading.precision import MIN_WIDTH, auto_precision, computes_in_bf16, is_wide

INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize("instruction", [*INSTRUCTIONS, None])
def test_it_takes_one_kind_of_instructions(instruction: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, name, lambda found=name == instruction: found)
    assert computes_in_bf16() == (instruction is not None)


def test_a_torch_that_can_not_tell_does_not_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in INSTRUCTIONS:
        monkeypatch.delattr(torch.cpu, name)
    assert not computes_in_bf16()


def test_a_narrow_model_gains_nothing_nor_does_one_that_has_no_width() -> None:
    assert is_wide(LlamaConfig(hidden_size=MIN_WIDTH))
    assert not is_wide(LlamaConfig(hidden_size=MIN_WIDTH - 32))
    assert not is_wide(PreTrainedConfig())


@pytest.mark.parametrize(("computes", "expected"), [(True, "bf16"), (False, "no")])
def test_mixed_precision_is_for_devices_that_compute_in_bfloat16(
    computes: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes_in_bf16", lambda: computes)
    # A GPU that only emulates it does not compute in it.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or computes)
    assert [auto_precision(device) for device in ("cpu", "cuda:1", "mps")] == [expected, expected, "no"]
