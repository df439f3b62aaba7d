"""4-bit weights by bitsandbytes, for the frozen models and the base of a LoRA tester.

QLoRA (https://arxiv.org/abs/2305.14314): a layer's weights are stored in 4 bits, its scales in 8, and both are
dequantised to the type of the forward when the layer is called. The adapter is not quantised.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from astra_accel.config import ModelConfiguration
from astra_accel.models.kernel_notice import NOTICE


def check_quantization(model: ModelConfiguration, role: str, config: Any) -> None:
    """Check that a model can be loaded in 4 bits, before its weights load.

    Args:
        model: the model's settings, with its ``quantization``.
        role: the model's role, for messages.
        config: the model's transformers configuration.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: the checkpoint is already quantised.
    """
    if model.quantization is None:
        return
    if find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{role}.quantization is {model.quantization!r}, for which the package bitsandbytes is missing: "
            f"pip install 'astra-accel[quantization]'"
        )
    found = getattr(config, "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
        raise ValueError(
            f"{role}.quantization is {model.quantization!r}, but {model.path} is quantised already (by {method}); "
            f"expected null"
        )


def check_device(quantization: str | None, role: str, device: torch.device | str) -> None:
    """Check that bitsandbytes computes on the device, and that the launch would not split 4-bit weights.

    Raises:
        ValueError: a check fails; the message names the device and the supported ones, or the launch.
    """
    if quantization is None:
        return
    import bitsandbytes
    from transformers.integrations import is_deepspeed_zero3_enabled

    if role == "tester" and is_deepspeed_zero3_enabled():  # the only role that is split
        raise ValueError(
            f"{role}.quantization is {quantization!r}, but the launch is DeepSpeed ZeRO-3, which splits the tester's "
            f"weights, and can't those of 4 bits; expected another launch (zero2, fsdp2, DDP), or quantization null"
        )

    supported = sorted(bitsandbytes.supported_torch_devices)
    if torch.device(device).type not in supported:
        raise ValueError(
            f"{role}.quantization is {quantization!r}, but bitsandbytes does not compute on {torch.device(device).type}"
            f" here; expected one of {', '.join(supported)}, or quantization null"
        )


def loading_options(quantization: str, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for 4-bit weights, from which layers compute in ``dtype``.

    They are stored as that type too: still four bits a weight, but FSDP shards and casts only tensors of one floating
    type, and leaves bytes unsharded.
    """
    from transformers import BitsAndBytesConfig

    if torch.device(device).type == "cpu":
        NOTICE.tell()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": config, "device_map": {"": torch.device(device)}}


def compute_alike(model: Any) -> None:
    """Make quantised layers compute the same in rollouts as in updates.

    On some CPUs they would switch to weights and scales in bfloat16 when called without gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
