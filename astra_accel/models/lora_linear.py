"""A linear layer with a LoRA adapter as one operation.

PEFT adds up the layer's output and the adapter's in steps, each of which writes a tensor of the output's size, and as
many again on the way back. The sum can be left to the matrix product, which adds to what is there already.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear


def fuse_adapters(model: Any) -> None:
    """Have the plain LoRA layers of a model compute layer and adapter together, wherever that is all they do.

    Plain are those on a ``torch.nn.Linear`` (GPT-2's layers hold their weights the other way round). A layer decides at
    each call, so what PEFT switches, and what is wrapped around the model later, is obeyed.
    """
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is torch.nn.Linear and "forward" not in vars(module):
            module.forward = partial(_forward, module, module.forward)


def _forward(layer: LoraLinear, usual: Any, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    adapter = None if args or kwargs else _only_adapter(layer)
    if adapter is None:
        return usual(states, *args, **kwargs)
    base, down, up = layer.base_layer, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if not _frozen(base) or not _alike(states, base.weight, down, up):
        return usual(states)
    return _LoraLinear.apply(states, base.weight, base.bias, down, up, layer.scaling[adapter])


def _only_adapter(layer: LoraLinear) -> str | None:
    """The one adapter that a layer adds to its output, if it adds one, in the plain way and with no dropout."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant or layer.lora_bias[active[0]]:
        return None
    dropout = layer.lora_dropout[active[0]]
    return active[0] if isinstance(dropout, torch.nn.Identity) or not dropout.training else None


def _frozen(base: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in base.parameters())


def _alike(states: torch.Tensor, *weights: torch.Tensor) -> bool:
    """Whether all are plain tensors of one type at one place.

    Quantised weights are of a class of their own, and so are sharded ones outside of their forward. DeepSpeed's ZeRO-3
    gathers them as their modules are called, which nobody does here. Autocast has a type for each operation.
    """
    return (
        all(type(weight) is torch.nn.Parameter and not hasattr(weight, "ds_id") for weight in weights)
        and all(weight.dtype == states.dtype and weight.device == states.device for weight in weights)
        and not torch.is_autocast_enabled(states.device.type)
    )


class _LoraLinear(torch.autograd.Function):
    """``y = x W^T + b + s (x A^T) B^T`` with ``W`` and ``b`` frozen (LoRA, https://arxiv.org/abs/2106.09685, eq. 3).

    With ``h = x A^T`` and the gradient ``g`` of ``y``, ``u = s g B`` is that of ``h``; that of ``x`` is ``g W + u A``,
    of ``A`` it is ``u^T x``, and of ``B`` it is ``s g^T h``.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        states: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        states_TI = states.reshape(-1, states.shape[-1])
        inner_TR = states_TI @ down_RI.T
        output_TO = torch.nn.functional.linear(states_TI, weight_OI, bias_O).addmm_(inner_TR, up_OR.T, alpha=scale)
        ctx.save_for_backward(states_TI, inner_TR, weight_OI, down_RI, up_OR)
        ctx.scale = scale
        return output_TO.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states_TI, inner_TR, weight_OI, down_RI, up_OR = ctx.saved_tensors
        gradient_TO = gradient.reshape(-1, gradient.shape[-1])
        to_inner_TR = (gradient_TO @ up_OR).mul_(ctx.scale)
        to_states = None
        if ctx.needs_input_grad[0]:
            to_states = (gradient_TO @ weight_OI).addmm_(to_inner_TR, down_RI).view(*gradient.shape[:-1], -1)
        to_up_OR = (gradient_TO.T @ inner_TR).mul_(ctx.scale)
        return to_states, None, None, to_inner_TR.T @ states_TI, to_up_OR, None
