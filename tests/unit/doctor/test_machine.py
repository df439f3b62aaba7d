"""What the doctor finds of a machine's devices."""

from __future__ import annotations

import pytest
import torch

from astra_accel.doctor.machine import _devices
from astra_accel.models.loading.precision import computes_in_bf16

INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize("instruction", [*INSTRUCTIONS, None])
def test_a_processor_computes_in_bf16_if_it_has_instructions_for_it(
    instruction: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As models are loaded by."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for name in INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, name, lambda found=name == instruction: found)
    kind, (device,) = _devices(torch)
    assert kind == "cpu"
    assert device.bf16 == computes_in_bf16() == (instruction is not None)
