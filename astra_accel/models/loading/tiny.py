"""Tiny random language models built in code: for tests, and for an example that runs in seconds.

Nothing is downloaded. The architectures differ where code that should serve all models tends to go wrong:

- ``llama``: rotary positions, three query heads per key head, tied embeddings. The tokenizer puts ``<s>``
  before every text that it encodes (so encoding what was decoded adds one), and pads with a separate token.
  ChatML, with ``<s>`` in front.
- ``gpt2``: learned positions, tied embeddings, dropout of 0.1 when training. ``<|endoftext|>`` is the only
  special token: bos, eos and pad. No chat template.
- ``qwen2``: rotary positions, three query heads per key head, biases in the attention, separate embeddings. No
  bos; pads with ``<|endoftext|>``. ChatML. The tokenizer is transformers' own class for Qwen2, since that is
  what ``AutoTokenizer`` makes of a saved one: it normalises text to NFC.

``llama`` and ``qwen2`` end with ``<|im_end|>``, as a ChatML turn does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny(
    architecture: str = "llama", *, seed: int = 0, **config_overrides: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Build a random model of 50 to 100 thousand float32 parameters, and its byte-level tokenizer.

    The model has 2 layers of width 48 and 512 positions, and is in evaluation mode on the CPU. Its weights depend only
    on the arguments, and torch's global random state is unchanged. The tokenizer has a token for each byte (ids 0 to
    255, in their own order), then the special tokens. It encodes any text, and decoding returns the same text (in NFC,
    for ``qwen2``).

    Args:
        architecture: one of :data:`TINY_ARCHITECTURES`.
        seed: the random seed of the weights.
        config_overrides: fields of the architecture's configuration, under its own names or the common ones
            (``hidden_size``, ``num_hidden_layers``, …).

    Raises:
        ValueError: the architecture is not one of the tiny ones.
    """
    if architecture not in _RECIPES:
        raise ValueError(f"architecture is {architecture!r}, expected one of {', '.join(TINY_ARCHITECTURES)}")
    recipe = _RECIPES[architecture]
    tokenizer = recipe.build_tokenizer()
    special_ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = _build_config(recipe, {"vocab_size": len(tokenizer), **special_ids}, config_overrides)
    # Only the CPU's generator: torch.manual_seed would reseed every accelerator as well. The class itself:
    # AutoModelForCausalLM.from_config splits the weights where DeepSpeed ZeRO-3 is on.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = recipe.model_class(config).float().eval()
    model.generation_config = GenerationConfig(**special_ids)
    return model, tokenizer


def save_tiny(folder: str | Path, architecture: str = "llama", *, seed: int = 0, **config_overrides: Any) -> Path:
    """Write what :func:`build_tiny` returns with ``save_pretrained``, and return the folder."""
    model, tokenizer = build_tiny(architecture, seed=seed, **config_overrides)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _llama_tokenizer() -> PreTrainedTokenizerFast:
    special_tokens = ["<s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    backend = _byte_level_backend(special_tokens)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template="{{ bos_token }}" + _CHATML,
        clean_up_tokenization_spaces=False,
    )


def _gpt2_tokenizer() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_backend([end]),
        bos_token=end,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
    )


def _qwen2_tokenizer() -> PreTrainedTokenizerFast:
    return Qwen2Tokenizer(
        vocab=_byte_vocabulary(),
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=_CHATML,
        clean_up_tokenization_spaces=False,
    )


def _byte_level_backend(special_tokens: list[str]) -> Tokenizer:
    """A tokenizer of single bytes: byte-pair encoding without a single merge."""
    backend = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    return backend


def _byte_vocabulary() -> dict[str, int]:
    """The 256 printable characters that stand for the bytes, numbered in the same order on every machine."""
    return {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@dataclass(frozen=True)
class _Recipe:
    """What one architecture is built from."""

    model_class: Any
    config_class: Any
    build_tokenizer: Callable[[], PreTrainedTokenizerFast]
    settings: Mapping[str, Any] = field(default_factory=dict)


_RECIPES = {
    "llama": _Recipe(
        LlamaForCausalLM,
        LlamaConfig,
        _llama_tokenizer,
        {"num_key_value_heads": 1, "intermediate_size": 96, "tie_word_embeddings": True},
    ),
    "gpt2": _Recipe(GPT2LMHeadModel, GPT2Config, _gpt2_tokenizer),
    "qwen2": _Recipe(
        Qwen2ForCausalLM,
        Qwen2Config,
        _qwen2_tokenizer,
        {"num_key_value_heads": 1, "intermediate_size": 96, "tie_word_embeddings": False},
    ),
}

TINY_ARCHITECTURES: tuple[str, ...] = tuple(_RECIPES)


def _build_config(recipe: _Recipe, of_tokenizer: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """The configuration: what all tiny models share, then the architecture's settings, then the overrides."""
    defaults = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,  # heads of 16, the narrowest that fused attention kernels take
        "max_position_embeddings": 512,
        # At the usual 0.02 every next-token distribution is nearly uniform, whatever the context.
        "initializer_range": 0.25,
        **of_tokenizer,
        **recipe.settings,
    }
    # GPT-2 calls the width n_embd: under one name, an override replaces the default.
    own_names = recipe.config_class.attribute_map
    settings = {own_names.get(name, name): value for name, value in defaults.items()}
    settings |= {own_names.get(name, name): value for name, value in overrides.items()}
    return recipe.config_class(**settings)
