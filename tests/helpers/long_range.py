"""Tiny random models whose rotary embeddings, or queries, depend on how long the text is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.helpers.architectures import _COMMON, _WITH_HEAD_DIM

LIMIT = 24
"""Where the factors of these models change."""

_SIZES = {**_COMMON, **_WITH_HEAD_DIM}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0, 30.0],
    "original_max_position_embeddings": LIMIT,
}
_MSCALE = {"short_mscale": 1.1, "long_mscale": 1.4}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": LIMIT}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": LIMIT,
}


def _llama(rotary: dict[str, Any], **sizes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, **sizes}, rope_parameters=dict(rotary)))


def _phi3() -> PreTrainedModel:
    # Phi-3 has no head_dim of its own: 48 / 3.
    sizes = {name: value for name, value in _SIZES.items() if name != "head_dim"}
    rotary = {**_LONG, "partial_rotary_factor": 1.0}
    return Phi3ForCausalLM(
        Phi3Config(**sizes, sliding_window=None, original_max_position_embeddings=LIMIT, rope_parameters=rotary)
    )


def _phimoe() -> PreTrainedModel:
    sizes = {**_SIZES, "num_local_experts": 3, "num_experts_per_tok": 2}
    config = PhimoeConfig(**sizes, sliding_window=None, rope_parameters={**_LONG, **_MSCALE})
    return PhimoeForCausalLM(config)


def _gemma3() -> PreTrainedModel:
    rotary = {"sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}, "full_attention": dict(_LONG)}
    config = Gemma3TextConfig(
        **_SIZES,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=16,
        rope_parameters=rotary,
    )
    return Gemma3ForCausalLM(config)


def _ministral3() -> PreTrainedModel:
    rotary = {**_YARN, "llama_4_scaling_beta": 0.5}
    return Ministral3ForCausalLM(Ministral3Config(**_SIZES, sliding_window=None, rope_parameters=rotary))


def _llama4(**options: Any) -> PreTrainedModel:
    sizes = {**_SIZES, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 96}
    config = Llama4TextConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **options)
    return Llama4ForCausalLM(config)


_BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "phi3 longrope": _phi3,
    "llama longrope": lambda: _llama(_LONG),
    "phimoe longrope": _phimoe,
    "gemma3 longrope in full layers": _gemma3,
    "llama dynamic": lambda: _llama(_DYNAMIC, max_position_embeddings=LIMIT),
    "qwen2 dynamic": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **{**_COMMON, "max_position_embeddings": LIMIT},
            num_key_value_heads=1,
            intermediate_size=96,
            rope_parameters=dict(_DYNAMIC),
        )
    ),
    "llama yarn": lambda: _llama(_YARN),
    "llama llama3": lambda: _llama(_LLAMA3),
    "llama linear": lambda: _llama({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "ministral3 scaled queries": _ministral3,
    "llama4 chunks": lambda: _llama4(
        attention_chunk_size=10, layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 1]
    ),
    "llama4 scaled queries": lambda: _llama4(
        layer_types=["full_attention", "full_attention"], no_rope_layers=[1, 0], floor_scale=10, attn_scale=1.0
    ),
}

ALL: tuple[str, ...] = tuple(_BUILDERS)
LONGROPE = tuple(name for name in ALL if "longrope" in name)
DYNAMIC = tuple(name for name in ALL if "dynamic" in name)


def build_long_range(name: str) -> Any:
    """A model with the same random weights each time, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _BUILDERS[name]().eval()


@torch.no_grad()
def growing_logprobs(model: Any, context: Sequence[int], continuation: Sequence[int]) -> torch.Tensor:
    """One plain forward a token, over the tokens before it, of a model that has read nothing else."""
    model = copy.deepcopy(model)
    ids = [*context, *continuation]
    values = [
        model(torch.tensor([ids[:place]]), use_cache=False).logits[0, -1].log_softmax(-1)[ids[place]]
        for place in range(len(context), len(ids))
    ]
    return torch.stack(values)
