"""Where bfloat16 is faster than float32."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

MIN_WIDTH = 128
"""bfloat16 makes narrower models no faster. On an AMD EPYC with AVX512-BF16, products of 8 to 64 rows with a matrix of
[n, 3 n] took 0.3 to 0.4 times as long in float32 as in bfloat16 for n = 48, and 1.5 to 4.8 times as long for n from 128
to 1024."""


def computes_in_bf16() -> bool:
    """Whether this processor has instructions for products in bfloat16 (AVX512-BF16 or AMX)."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public names before 2.13
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def is_wide(config: PreTrainedConfig) -> bool:
    """Whether a model's products are large enough for bfloat16 to be faster."""
    return (getattr(config.get_text_config(), "hidden_size", None) or 0) >= MIN_WIDTH
