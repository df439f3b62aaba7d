"""The type that models load in: bfloat16 where it is faster than float32."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import PreTrainedConfig

from astra_accel.config import ComputeConfiguration

if TYPE_CHECKING:
    from astra_accel.models.roles import RoleFiles

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


def auto_precision(device: torch.device | str) -> str:
    """What ``training.mixed_precision: auto`` stands for: "bf16" on a device that computes in it, else "no"."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if kind == "cpu" and computes_in_bf16() else "no"


class AutoDtype(NamedTuple):
    """What ``auto`` stands for, and a message that says so, and why."""

    dtype: str
    message: str


def auto_dtype(files: RoleFiles, device: torch.device | str) -> AutoDtype:
    """The type that ``compute.dtype: auto`` stands for: "bfloat16" or "float32", or "auto" for each checkpoint's own.

    It is bfloat16 on a CPU that computes in bfloat16, unless that gains nothing: a model is narrow, or has 4-bit
    weights, which are computed in float32 there.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return AutoDtype("auto", f"each model's own type, as its checkpoint says (the device is {kind})")
    if not computes_in_bf16():
        return AutoDtype("float32", "float32, since this processor has no instructions for bfloat16")
    for role, model in files.configurations.items():
        if model.quantization is not None:
            return AutoDtype("float32", f"float32, since the {role} has 4-bit weights, which a CPU computes in float32")
        if not is_wide(getattr(files, role).config):
            return AutoDtype("float32", f"float32, since the {role} is so narrow that bfloat16 is no faster")
    return AutoDtype("bfloat16", "bfloat16, in which this processor computes (for float32: --compute.dtype float32)")


def with_dtypes(files: RoleFiles, device: torch.device | str, compute: ComputeConfiguration) -> RoleFiles:
    """The same files with a type for each role that left it open; "auto" is the checkpoint's own."""
    default = auto_dtype(files, device).dtype if compute.dtype == "auto" else compute.dtype
    tester = files.configurations["tester"]
    dtypes = dict.fromkeys(files.configurations, default)
    if files.lora is None and tester.adapter is None:
        # An optimizer's steps get lost in 16 bits, and a tester is compared with its baseline token by token.
        dtypes["tester"] = "float32"
        if torch.device(device).type == "cpu":
            dtypes["baseline"] = "float32"
    configurations = {
        role: model.model_copy(update={"dtype": dtypes[role]}) if model.dtype == "auto" else model
        for role, model in files.configurations.items()
    }
    return replace(files, configurations=configurations)
