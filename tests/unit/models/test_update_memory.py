"""What an update of a LoRA tester keeps for the backward pass, as docs/scaling.md says it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from astra_accel.models.decoding.prefill import packed_hidden
from astra_accel.models.forward.prefix_tree import pack_sequences
from astra_accel.models.forward.tree_attention import TreeLayout
from astra_accel.models.layers.activation_checkpointing import activation_checkpointing
from astra_accel.models.layers.lora_linear import fuse_adapters

NARROWER = 4
"""Every width of Llama 3.1 8B by this, and what a token keeps with it."""
KEPT_8B = 218e3
INPUT_8B = 2 * 4096


def kept_by_token(checkpointing: bool) -> float:
    """Bytes that one more layer keeps of one more token, in the measure of 8B."""

    def kept(num_layers: int, num_tokens: int) -> int:
        return _kept(_model(num_layers), num_tokens, checkpointing)

    per_token = [(kept(layers, 192) - kept(layers, 64)) / 128 for layers in (1, 2)]
    return NARROWER * (per_token[1] - per_token[0])


def _model(num_layers: int) -> Any:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=4096 // NARROWER,
        intermediate_size=14336 // NARROWER,
        num_hidden_layers=num_layers,
        num_attention_heads=32 // NARROWER,
        num_key_value_heads=8 // NARROWER,
        head_dim=128,
    )
    lora = LoraConfig(r=32 // NARROWER, target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM(config).bfloat16(), lora).get_base_model()
    fuse_adapters(model)
    return model


def _kept(model: Any, num_tokens: int, checkpointing: bool) -> int:
    """Bytes of distinct memory, but weights, that autograd saves in a forward under autocast."""
    ids = [token % 256 for token in range(num_tokens)]
    (pack,) = pack_sequences([ids], [[0]], num_tokens)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # which keeps the address its own
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    switch = activation_checkpointing(model) if checkpointing else nullcontext()
    with torch.autocast("cpu", torch.bfloat16), hooks, switch:
        packed_hidden(model, pack, TreeLayout(pack, torch.device("cpu")))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_an_update_keeps_at_most_what_the_guide_says() -> None:
    """Less where layer and adapter are one operation."""
    assert 0.5 * KEPT_8B < kept_by_token(checkpointing=False) < 1.02 * KEPT_8B


@pytest.mark.slow
def test_activation_checkpointing_keeps_the_input_of_each_layer() -> None:
    assert abs(kept_by_token(checkpointing=True) / INPUT_8B - 1) < 0.01
