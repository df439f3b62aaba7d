"""Tiny random models by what they do between their body and their logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

VOCABULARY, UNPADDED = 260, 250
"""Tokens of the tiny tokenizers; and those that count where the output layer has rows to spare."""

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 257, "bos_token_id": 256, "eos_token_id": 259}
_SHORT = {**_IDS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.25}
_BASE = {**_SHORT, "max_position_embeddings": 512}
_MLP = {"intermediate_size": 64}
_GROUPED = {**_MLP, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 12}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_GPT = {**_IDS, "n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 512, "initializer_range": 0.25}
_LOW_RANK = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

_BUILDERS: dict[str, Callable[[], Any]] = {
    # Factors: of these names, multiplied by or divided by, on the output layer's input or on its output.
    "hyperclovax": lambda: hf.HyperCLOVAXForCausalLM(hf.HyperCLOVAXConfig(**_BASE, **_GROUPED, logits_scaling=0.25)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**_BASE, **_GROUPED, logits_scaling=4.0)),
    "granitemoe": lambda: hf.GraniteMoeForCausalLM(
        hf.GraniteMoeConfig(**_BASE, **_GROUPED, **_EXPERTS, logits_scaling=4.0)
    ),
    "granitemoeshared": lambda: hf.GraniteMoeSharedForCausalLM(
        hf.GraniteMoeSharedConfig(**_BASE, **_GROUPED, **_EXPERTS, shared_intermediate_size=32, logits_scaling=4.0)
    ),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridForCausalLM(
        hf.GraniteMoeHybridConfig(
            **_BASE,
            **_GROUPED,
            **_EXPERTS,
            **_MAMBA,
            mamba_expand=2,
            shared_intermediate_size=32,
            layer_types=["mamba", "attention"],
            logits_scaling=4.0,
        )
    ),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**_BASE, **_GROUPED, logit_scale=0.25)),
    "cohere2": lambda: hf.Cohere2ForCausalLM(hf.Cohere2Config(**_BASE, **_HEADS, logit_scale=0.25, sliding_window=12)),
    "falcon_h1": lambda: hf.FalconH1ForCausalLM(
        hf.FalconH1Config(**_BASE, **_HEADS, **_MAMBA, mamba_d_ssm=96, lm_head_multiplier=3.0)
    ),
    "minicpm3": lambda: hf.MiniCPM3ForCausalLM(
        hf.MiniCPM3Config(**_BASE, **_MLP, **_LOW_RANK, num_key_value_heads=4, dim_model_base=12)
    ),
    # Soft caps, of three names.
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_BASE, **_HEADS, final_logit_softcapping=6.0)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_BASE, **_HEADS, final_logit_softcapping=6.0)),
    "vaultgemma": lambda: hf.VaultGemmaForCausalLM(hf.VaultGemmaConfig(**_BASE, **_HEADS, final_logit_softcapping=6.0)),
    "nanochat": lambda: hf.NanoChatForCausalLM(hf.NanoChatConfig(**_BASE, **_GROUPED, final_logit_softcapping=6.0)),
    "recurrent_gemma": lambda: hf.RecurrentGemmaForCausalLM(
        hf.RecurrentGemmaConfig(
            **{**_SHORT, "num_hidden_layers": 3},
            intermediate_size=96,
            num_key_value_heads=1,
            attention_window_size=64,
            lru_width=48,
            logits_soft_cap=2.0,
        )
    ),
    "xlstm": lambda: hf.xLSTMForCausalLM(
        hf.xLSTMConfig(
            **_IDS,
            hidden_size=48,
            num_heads=4,
            num_hidden_layers=2,
            output_logit_soft_cap=2.0,
            chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            chunk_size=16,
        )
    ),
    # Rows of the output layer that fill it up.
    "inkling": lambda: hf.InklingForCausalLM(
        hf.InklingTextConfig(**_BASE, **_HEADS, logits_mup_width_multiplier=4.0, unpadded_vocab_size=UNPADDED)
    ),
    "inkling2": lambda: hf.Inkling2ForCausalLM(
        hf.Inkling2TextConfig(**_BASE, **_HEADS, final_logit_softcapping=6.0, unpadded_vocab_size=UNPADDED)
    ),
    # A bias, or nothing at all.
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**_GPT)),
    "codegen": lambda: hf.CodeGenForCausalLM(hf.CodeGenConfig(**_GPT, n_ctx=512)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**_BASE, **_MLP)),
    "phimoe": lambda: hf.PhimoeForCausalLM(
        hf.PhimoeConfig(**_BASE, **_GROUPED, num_local_experts=4, lm_head_bias=True)
    ),
    "nemotron": lambda: hf.NemotronForCausalLM(hf.NemotronConfig(**_BASE, **_HEADS)),
    "olmo": lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**_BASE, **_GROUPED)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**_BASE, **_GROUPED)),
    "bamba": lambda: hf.BambaForCausalLM(hf.BambaConfig(**_BASE, **_GROUPED, **_MAMBA, attn_layer_indices=[1])),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**_BASE)),
    "rwkv": lambda: hf.RwkvForCausalLM(
        hf.RwkvConfig(**_IDS, **_MLP, hidden_size=48, num_hidden_layers=2, attention_hidden_size=48, context_length=512)
    ),
    "bart": lambda: hf.BartForCausalLM(
        hf.BartConfig(
            **_IDS,
            d_model=48,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            max_position_embeddings=512,
            init_std=0.25,
            is_decoder=True,
            is_encoder_decoder=False,
        )
    ),
    "biogpt": lambda: hf.BioGptForCausalLM(hf.BioGptConfig(**_BASE, **_MLP)),
    # A body whose output is narrower than its layers.
    "opt_350m": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **_IDS,
            hidden_size=48,
            word_embed_proj_dim=24,
            do_layer_norm_before=False,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            max_position_embeddings=512,
            init_std=0.2,
        )
    ),
    # Layers between body and output layer; or a body that can't be called by itself.
    "bert": lambda: hf.BertLMHeadModel(hf.BertConfig(**_BASE, **_MLP, is_decoder=True)),
    "electra": lambda: hf.ElectraForCausalLM(hf.ElectraConfig(**_BASE, **_MLP, embedding_size=24, is_decoder=True)),
    "rembert": lambda: hf.RemBertForCausalLM(
        hf.RemBertConfig(**_BASE, **_MLP, input_embedding_size=24, output_embedding_size=32, is_decoder=True)
    ),
    "modernbert_decoder": lambda: hf.ModernBertDecoderForCausalLM(
        hf.ModernBertDecoderConfig(**_BASE, **_MLP, local_attention=12)
    ),
    "llama4": lambda: hf.Llama4ForCausalLM(
        hf.Llama4TextConfig(**_BASE, **_HEADS, intermediate_size_mlp=64, num_local_experts=2)
    ),
}

FORMS: dict[str, tuple[float, float | None, int]] = {
    **dict.fromkeys(_BUILDERS, (1.0, None, VOCABULARY)),
    **dict.fromkeys(["hyperclovax", "granite", "granitemoe", "granitemoeshared"], (0.25, None, VOCABULARY)),
    **dict.fromkeys(["granitemoehybrid", "cohere", "cohere2", "minicpm3"], (0.25, None, VOCABULARY)),
    "falcon_h1": (3.0, None, VOCABULARY),
    **dict.fromkeys(["gemma2", "gemma3", "vaultgemma", "nanochat"], (1.0, 6.0, VOCABULARY)),
    **dict.fromkeys(["recurrent_gemma", "xlstm"], (1.0, 2.0, VOCABULARY)),
    "inkling": (0.25, None, UNPADDED),
    "inkling2": (1.0, 6.0, UNPADDED),
}
"""The factor, the soft cap and the number of logits of each, as its configuration has them."""

OF_THEIR_OWN = ("bert", "electra", "rembert", "modernbert_decoder")
"""Those whose logits are not a linear layer of their body's output."""

OUTPUT_LAYERS = tuple(_BUILDERS)


def build_output_layer(name: str) -> Any:
    """A model with random weights, biases included, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _BUILDERS[name]().eval()
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            torch.nn.init.normal_(bias)
        if name == "xlstm":  # whose own weights begin too small to show the cap
            torch.nn.init.normal_(model.lm_head.weight, std=0.5)
        return model


def body(model: Any) -> Any:
    """What is below a model's output layer. Llama 4 names itself for it."""
    return model.model if model.base_model is model else model.base_model
