"""Weights of 4 bits, by bitsandbytes: the frozen models, and the base under a LoRA tester.

QLoRA (https://arxiv.org/abs/2305.14314): a layer's weights are stored in 4 bits, its scales in 8, and each is turned
back into the type of the forward as the layer is called. The adapter is not quantised.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from astra_accel.config import ModelConfiguration
from astra_accel.models.kernel_notice import NOTICE


def check_quantization(model: ModelConfiguration, role: str, config: Any) -> None:
    """Find a model that can't be loaded in 4 bits, before its weights load.

    Args:
        model: of which ``quantization`` is asked.
        role: whose model it is, for messages.
        config: of transformers.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: the checkpoint is quantised already.
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
    """Find a device on which bitsandbytes does not compute, or a launch that would split weights of 4 bits.

    Raises:
        ValueError: names the device and those that there are, or the launch.
    """
    if quantization is None:
        return
    import bitsandbytes
    from transformers.integrations import is_deepspeed_zero3_enabled

    if role == "tester" and is_deepspeed_zero3_enabled():  # of all roles it alone is split
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
    """Arguments of ``from_pretrained`` for weights of 4 bits, from which layers compute in ``dtype``.

    They are stored under that type too: four bits a weight all the same, but what shards weights (FSDP) takes and casts
    numbers of one floating type, and bytes it leaves whole.
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
    """Have quantised layers compute in rollouts what they compute in updates.

    On some CPUs they would go over to weights and scales in bfloat16 as soon as they are called without gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
