"""A LoRA adapter merged into the weights for as long as a role speaks, without touching the weights.

Merged weights cost a copy and make every layer one matrix product again. The layers are pointed at the copy and back,
so that what they hold afterwards is what they held before, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer


def merged_adapter(model: Any, adapter: str) -> Callable[[], AbstractContextManager[None]] | None:
    """A switch in which a model has an adapter merged into its weights, as the adapter is now.

    None where there is no adapter, or merging would change more than rounding does: in weights of 16 bits an
    adapter's small steps get lost, and quantised, sharded or bias-carrying layers have no plain weight to add to.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers or not all(_mergeable(layer, adapter) for layer in layers):
        return None
    with torch.no_grad():
        merged = [layer.base_layer.weight + layer.get_delta_weight(adapter) for layer in layers]

    @contextmanager
    def switch() -> Iterator[None]:
        kept = [layer.base_layer.weight.data for layer in layers]
        try:
            for layer, weight in zip(layers, merged, strict=True):
                layer.base_layer.weight.data = weight
                layer._disable_adapters = True
            yield
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                layer.base_layer.weight.data = weight
                layer._disable_adapters = False

    return switch


def _mergeable(layer: LoraLayer, adapter: str) -> bool:
    weight = layer.base_layer.weight
    return (
        type(layer) is LoraLinear
        and adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and not layer.lora_bias[adapter]
        and type(weight) is torch.nn.Parameter
        and weight.dtype == torch.float32
        and weight.numel() > 0
        and not layer.merged_adapters
    )
