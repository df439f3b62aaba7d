"""Tiny random models of the architectures that differ in what matters here: positions, windows, caps, recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 260
MAX_POSITIONS = 1024
WINDOW = 12

# A spread of 0.25, and not the usual 0.02, under which every next-token distribution is nearly uniform.
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 1, "intermediate_size": 96}
_WITH_HEAD_DIM = {**_GROUPED, "head_dim": 16}

_BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, **_GROUPED, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=48,
            n_layer=2,
            n_head=3,
            n_positions=MAX_POSITIONS,
            initializer_range=0.25,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, intermediate_size=96)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **{name: value for name, value in _COMMON.items() if name != "initializer_range"},
            ffn_dim=96,
            word_embed_proj_dim=48,
            init_std=0.25,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, **_GROUPED)),
    "qwen2_mixed_windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_COMMON, **_GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_COMMON, **_WITH_HEAD_DIM)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_COMMON, **_WITH_HEAD_DIM, sliding_window=WINDOW)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **_COMMON,
            **_WITH_HEAD_DIM,
            sliding_window=WINDOW,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=6.0,
        )
    ),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_COMMON, intermediate_size=96)),
    "falcon_alibi": lambda: FalconForCausalLM(
        FalconConfig(
            **{**_COMMON, "hidden_size": 64, "num_attention_heads": 4}, alibi=True, new_decoder_architecture=False
        )
    ),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCABULARY,
            hidden_size=48,
            num_hidden_layers=2,
            state_size=8,
            initializer_range=0.25,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ),
}

ARCHITECTURES: tuple[str, ...] = tuple(_BUILDERS)
FALLS_BACK = ("falcon_alibi", "mamba")
"""Those that can neither be packed nor continue from carried caches."""


def build(architecture: str, seed: int = 0) -> Any:
    """A model with random weights that follow from the seed, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _BUILDERS[architecture]().eval()
