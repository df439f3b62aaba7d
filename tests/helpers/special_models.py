"""Tiny random models whose layers are not all called once, as themselves, by a forward on text.

Mixtures of experts, in fused parameters; state spaces, of which some layers are read past their forward; blocks that
are used in several places; models that see as well. They take the tokenizer of the tiny llama.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from astra_accel.models.loading.tiny import build_tiny

_COMMON: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 259,
    "pad_token_id": 257,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
}
_STATE = {"mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _of(name: str, *, config: str | None = None, **settings: Any) -> Callable[[], Any]:
    """A builder of a causal model by the stem of its classes."""

    def build() -> Any:
        configuration = getattr(hf, config or f"{name}Config")(**{**_COMMON, **settings})
        return getattr(hf, f"{name}ForCausalLM")(configuration)

    return build


def _gemma3() -> Any:
    text = {**_COMMON, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
    config = hf.Gemma3Config(
        text_config=text, vision_config=_VISION, mm_tokens_per_image=4, image_token_index=258, eos_token_id=259
    )
    return hf.Gemma3ForConditionalGeneration(config)


MIXTURES: dict[str, Callable[[], Any]] = {
    "qwen2_moe": _of("Qwen2Moe", **_EXPERTS, num_experts=4, shared_expert_intermediate_size=32),
    "qwen3_moe": _of("Qwen3Moe", **_EXPERTS, num_experts=4, head_dim=16),
    "deepseek_v2": _of("DeepseekV2", **_LATENT, **_ROUTED, n_group=2, topk_group=1),
    "deepseek_v3": _of("DeepseekV3", **_LATENT, **_ROUTED, n_group=2, topk_group=1),
    "glm4_moe": _of("Glm4Moe", **_ROUTED, n_group=1, topk_group=1, head_dim=16),
    "mixtral": _of("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "olmoe": _of("Olmoe", num_experts=4, num_experts_per_tok=2),
    "gpt_oss": _of("GptOss", head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16),
    "granite_moe": _of("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    "llama4": _of(
        "Llama4",
        config="Llama4TextConfig",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
        attention_chunk_size=64,
    ),
    "phi_moe": _of("Phimoe", num_local_experts=4, num_experts_per_tok=2),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "jamba": _of(
        "Jamba",
        **_STATE,
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    "mamba": _of("Mamba", state_size=8),
    "falcon_mamba": _of("FalconMamba", state_size=8),
    "bamba": _of("Bamba", attn_layer_indices=[1], mamba_d_state=8, mamba_n_heads=4, mamba_d_head=24, mamba_n_groups=1),
    "zamba": _of(
        "Zamba",
        **_STATE,
        num_hidden_layers=6,
        num_key_value_heads=4,
        attn_layer_period=3,
        attn_layer_offset=2,
        n_mamba_heads=2,
        attention_head_dim=24,
        attention_hidden_size=96,
    ),
    "zamba2": _of(
        "Zamba2",
        initializer_range=0.1,
        num_hidden_layers=5,
        num_key_value_heads=4,
        mamba_d_state=8,
        n_mamba_heads=4,
        mamba_headdim=24,
        mamba_ngroups=1,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba"],
        num_mem_blocks=1,
        use_mamba_kernels=False,
        chunk_size=16,
    ),
    "gemma3": _gemma3,
}
SPECIAL = {**MIXTURES, **OTHERS}


def build_special(name: str, seed: int = 0) -> Any:
    """A model with random weights that follow from the seed, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SPECIAL[name]().eval()


def save_special(folder: Path, name: str) -> Path:
    """The model and a tokenizer in a folder."""
    build_special(name).save_pretrained(folder)
    build_tiny("llama")[1].save_pretrained(folder)
    return folder
