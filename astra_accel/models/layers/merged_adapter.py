"""A LoRA adapter merged into the weights while a role generates, without changing the weights.

Merged weights cost a copy and make every layer one matrix product again. Meanwhile each adapted layer uses a copy of
its base whose weight is the sum. Modules that share the weight (an embedding tied to the head) or the base layer itself
keep what they have, and afterwards the layers hold what they held before, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, ParamWrapper

from astra_accel.models.forward.capabilities import UnsupportedModelError, assert_same, supports
from astra_accel.models.loading.text_forward import text_ids

FACTOR = 0x9E3779B1 - 2**32
"""2**32 over the golden ratio, as int32: its multiples, modulo 2**32, are spread evenly over all numbers."""

CHECK_SHARE = 0.1
"""The size of the comparison's adapters, relative to the weights that they are on."""


def merged_adapter(model: Any, adapter: str) -> Callable[[], AbstractContextManager[None]] | None:
    """A switch within which a model has an adapter, as it is now, merged into its weights.

    None if there is no adapter, or if merging would change more than rounding does: quantised, sharded or bias-carrying
    layers have no plain weight to add to.

    In bfloat16 an adapter's small steps would get lost in sums that are rounded to the nearest number: if the entries
    of B are about 1e-4, as after a first update, 6% of the adapter is left, at 1e-3 half, at 3e-3 nine tenths. So sums
    are rounded up or down by :func:`_sum`, and what an adapter does to many weights is kept. On 60 prompts SmolLM2-135M
    then has log-probs as close to float32's as with the adapter beside the weights: apart by 0.064 to 0.078 nats a
    token (root mean square), and by 0.067 to 0.073 beside them, for entries of B from 1e-4 to 1e-2.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers or not all(_mergeable(layer, adapter) for layer in layers):
        return None
    with torch.no_grad():
        merged = _merged_bases(layers, adapter)

    @contextmanager
    def switch() -> Iterator[None]:
        kept = [(layer, layer.base_layer) for layer in merged]
        try:
            for layer, base in merged.items():
                layer.base_layer = base
            for layer in layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer, base in kept:
                layer.base_layer = base
            for layer in layers:
                layer._disable_adapters = False

    return switch


def can_merge(model: Any, adapter: str) -> bool:
    """Whether a transformers model computes the same with an adapter merged as with it on; checked once.

    If another layer reads a layer's weight without calling the layer, the adapter reaches it only when merged. The
    comparison uses an adapter that changes the model, since a new one changes nothing.
    """
    if merged_adapter(model, adapter) is None:
        return False
    otherwise = "rollouts compute it separately at each layer"
    return supports(model, "a merged adapter", lambda model: _check_merging(model, adapter), otherwise)


def _merged_bases(layers: list[LoraLayer], adapter: str) -> dict[LoraLayer, torch.nn.Module]:
    """A copy of each base with the sums as weights, by the layer that holds it.

    A module with several adapted parameters has as many layers around it, nested.
    """
    merged: dict[LoraLayer, torch.nn.Module] = {}
    for layer in layers:
        holder = layer
        while isinstance(holder.base_layer, LoraLayer):
            holder = holder.base_layer
        if holder not in merged:
            merged[holder] = copy.copy(holder.base_layer)
            merged[holder]._parameters = dict(holder.base_layer._parameters)
        name = _weight_name(layer)
        total = _sum(getattr(holder.base_layer, name), layer.get_delta_weight(adapter))
        merged[holder]._parameters[name] = torch.nn.Parameter(total, requires_grad=False)
    return merged


def _sum(weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """A weight with an adapter's change, in the weight's type.

    In bfloat16 a sum between two numbers becomes the upper one for as large a share of the weights as it is nearer to
    that one: its rest is compared with a fixed number of each weight, and these are spread evenly (dithering). A change
    of 0 changes nothing.
    """
    if weight.dtype != torch.bfloat16:
        return weight + change
    bits = (weight.float() + change).contiguous().view(torch.int32)
    # The upper half of a float32's bits are those of the bfloat16 below it (towards 0).
    number = torch.arange(bits.numel(), dtype=torch.int32, device=bits.device).mul_(FACTOR)
    bits += number.bitwise_right_shift_(16).bitwise_and_(0xFFFF).view(bits.shape)
    return bits.bitwise_and_(-(2**16)).view(torch.float32).bfloat16()


def _weight_name(layer: LoraLayer) -> str:
    return layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"


def _mergeable(layer: LoraLayer, adapter: str) -> bool:
    weight = getattr(layer.get_base_layer(), _weight_name(layer), None)
    return (
        type(layer) in (LoraLinear, ParamWrapper)
        and adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and not layer.lora_bias[adapter]
        and type(weight) is torch.nn.Parameter
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() > 0
        and not layer.merged_adapters
    )


def _check_merging(model: Any, adapter: str) -> None:
    ids_1T = text_ids(model)
    before = _logprobs(model, ids_1T)
    with _some_adapter(model, adapter):
        expected = _logprobs(model, ids_1T)
        switch = merged_adapter(model, adapter)
        assert switch is not None
        with switch():
            found = _logprobs(model, ids_1T)
    if torch.equal(expected, before):
        raise UnsupportedModelError("the adapter changes nothing")
    assert_same([found], [expected], model.dtype)


@contextmanager
def _some_adapter(model: Any, adapter: str) -> Iterator[None]:
    """Within, the adapter's weights are random and change each layer by a share of its weights."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [side[adapter].weight for layer in layers for side in (layer.lora_A, layer.lora_B)]
    kept = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(0)
    try:
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=generator))
        for layer in layers:
            change = layer.get_delta_weight(adapter).norm()
            size = getattr(layer.get_base_layer(), _weight_name(layer)).norm().clamp(min=1.0)
            layer.lora_B[adapter].weight.mul_(CHECK_SHARE * size / change)
        yield
    finally:
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)


def _logprobs(model: Any, ids_1T: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids_1T, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)
