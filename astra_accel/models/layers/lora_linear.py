"""A linear layer with a LoRA adapter as one operation.

PEFT adds the layer's output and the adapter's in steps, each of which writes a tensor of the output's size, and as many
again in the backward pass. Here the matrix product does the sum, by adding to the existing output.

On a 16-bit base PEFT keeps adapters in float32, and computes their products in float32 too. Here they are computed in
the type of the forward, as under autocast, and summed in float32 within the product; gradients of the adapter are
float32. So the layer's output differs from PEFT's by the rounding of the adapter's part, which is smaller than that of
the output itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, ParamWrapper

from astra_accel.models.forward.capabilities import HALVES


def fuse_adapters(model: Any) -> None:
    """Make the plain LoRA layers of a model compute layer and adapter together, wherever that is all they do.

    Plain layers are those on a ``torch.nn.Linear`` (GPT-2's layers store their weights transposed), whether on the
    layer or on its weight by name. A layer decides at each call, so PEFT's switches and later wrappers of the model
    still work.
    """
    for module in model.modules():
        if _is_plain(module) and "forward" not in vars(module):
            module.forward = partial(_forward, module, module.forward)


def _is_plain(module: torch.nn.Module) -> bool:
    if type(module) is ParamWrapper:
        return type(module.base_layer) is torch.nn.Linear and module.parameter_name == "weight"
    return type(module) is LoraLinear and type(module.base_layer) is torch.nn.Linear


def _forward(layer: LoraLayer, usual: Any, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    adapter = None if args or kwargs else _only_adapter(layer)
    if adapter is None:
        return usual(states, *args, **kwargs)
    base, down, up = layer.base_layer, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    dtype = _dtype(states, base.weight, down, up)
    if dtype is None or not _frozen(base):
        # PEFT changes a weight targeted by name instead of adding to the output, and needs all of the weight for that.
        return usual(states) if type(layer) is LoraLinear else _in_steps(layer, adapter, states)
    states_TI = states.reshape(-1, states.shape[-1])
    with torch.autocast(states.device.type, enabled=False):
        output_TO = _LoraLinear.apply(states_TI, base.weight, base.bias, down, up, layer.scaling[adapter], dtype)
    # Out here, since a view returned by a custom operation can't be added to in place, as some models do.
    return output_TO.view(*states.shape[:-1], -1)


def _in_steps(layer: LoraLayer, adapter: str, states: torch.Tensor) -> torch.Tensor:
    """What PEFT computes on a linear layer: every part is called, so that sharded weights can be gathered."""
    output: torch.Tensor = layer.base_layer(states)
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    added = up(down(states.to(down.weight.dtype))) * layer.scaling[adapter]
    return (output + added).to(output.dtype)


def _only_adapter(layer: LoraLayer) -> str | None:
    """The one adapter that a layer adds to its output in the plain way, without dropout; None otherwise."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant or layer.lora_bias[active[0]]:
        return None
    dropout = layer.lora_dropout[active[0]]
    return active[0] if isinstance(dropout, torch.nn.Identity) or not dropout.training else None


def _frozen(base: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in base.parameters())


def _dtype(states: torch.Tensor, weight: torch.Tensor, *adapter: torch.Tensor) -> torch.dtype | None:
    """The type that a layer computes in; None unless its weights are plain tensors of matching float types.

    Quantised weights have their own class, and so do sharded ones outside of their forward. DeepSpeed's ZeRO-3 gathers
    weights when their modules are called, which does not happen here.
    """
    every = (weight, *adapter)
    if not all(type(one) is torch.nn.Parameter and not hasattr(one, "ds_id") for one in every):
        return None
    if not all(one.is_floating_point() and one.device == states.device for one in every):
        return None
    if torch.is_autocast_enabled(states.device.type):
        return torch.get_autocast_dtype(states.device.type)
    if weight.dtype != states.dtype:
        return None
    if all(one.dtype == states.dtype for one in adapter):
        return states.dtype
    float32 = all(one.dtype == torch.float32 for one in adapter)
    return states.dtype if float32 and states.dtype in HALVES else None


class _LoraLinear(torch.autograd.Function):
    """``y = x W^T + b + s (x A^T) B^T`` with ``W`` and ``b`` frozen (LoRA, https://arxiv.org/abs/2106.09685, eq. 3).

    With ``h = s x A^T`` and the gradient ``g`` of ``y``, ``u = s g B`` is that of ``x A^T``; that of ``x`` is
    ``g W + u A``, of ``A`` it is ``u^T x``, and of ``B`` it is ``g^T h``. All products are in one type. A ``W`` of
    another type is cast again in the backward pass, since keeping the cast weights would be another copy of the model.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        states_TI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.scale, ctx.states_dtype, ctx.adapter_dtype = scale, states_TI.dtype, down_RI.dtype
        states_TI = states_TI.to(dtype)
        down_RI, up_OR = down_RI.to(dtype), up_OR.to(dtype)
        inner_TR = _scaled_product(states_TI, down_RI.T, scale)
        bias_O = None if bias_O is None else bias_O.to(dtype)
        output_TO = torch.nn.functional.linear(states_TI, weight_OI.to(dtype), bias_O).addmm_(inner_TR, up_OR.T)
        ctx.save_for_backward(states_TI, inner_TR, weight_OI, down_RI, up_OR)
        return output_TO

    @staticmethod
    def backward(ctx: Any, gradient_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states_TI, inner_TR, weight_OI, down_RI, up_OR = ctx.saved_tensors
        to_inner_TR = _scaled_product(gradient_TO, up_OR, ctx.scale)
        to_states_TI = None
        if ctx.needs_input_grad[0]:
            to_states_TI = (gradient_TO @ weight_OI.to(gradient_TO.dtype)).addmm_(to_inner_TR, down_RI)
            to_states_TI = to_states_TI.to(ctx.states_dtype)
        to_down_RI = _wide_product(to_inner_TR.T, states_TI, ctx.adapter_dtype)
        to_up_OR = _wide_product(gradient_TO.T, inner_TR, ctx.adapter_dtype)
        return to_states_TI, None, None, to_down_RI, to_up_OR, None, None


def _scaled_product(left_TI: torch.Tensor, right_IR: torch.Tensor, scale: float) -> torch.Tensor:
    """A matrix product, scaled as it is computed; ``beta=0`` ignores the first argument, whatever it holds."""
    return torch.addmm(right_IR[:1, :1], left_TI, right_IR, beta=0, alpha=scale)


def _wide_product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A matrix product in a type that may be wider than its factors' type, so that its sums are not rounded to that."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda and dtype == torch.float32:
        return torch.mm(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)
