"""Whether a model is a causal language model: one that predicts each token only from those before it.

Rollouts sample from it and updates score it as such. transformers' auto class also loads encoders (BERT without
``is_decoder``), the decoder halves of encoder-decoders without the input they were trained on, and, where embeddings
are tied, checkpoints of classifiers: all of them run without an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

# "LlamaForSequenceClassification", but not "LlamaForCausalLM" or "Gemma3ForConditionalGeneration".
_OTHER_HEAD = re.compile(r".*For(?!CausalLM|ConditionalGeneration|TextGeneration|PreTraining)[A-Z]\w*")
_BODY = re.compile(r"\w+(?<!LMHead)(?<!DoubleHeads)Model")
# Relative to the spread of the logits. Causal models change by nothing, or by rounding in mixtures of experts.
_READS_AHEAD = {torch.float32: 1e-4, torch.float64: 1e-4}
_READS_AHEAD_IN_16_BITS = 2e-2
_CHECK_TOKENS = 8
EXPECTED = "expected a causal language model (of transformers' AutoModelForCausalLM, such as Llama or GPT-2)"


def not_causal(config: Any, *, own_code: bool = False) -> str | None:
    """Why a configuration is not that of a causal language model; None if nothing indicates that.

    Args:
        config: a transformers configuration.
        own_code: whether the model comes with its own code, about which nothing is known.
    """
    kind = f"model_type {config.model_type!r}"
    if config.is_encoder_decoder:
        return f"an encoder-decoder ({kind}), which answers a text that it has read instead of continuing it"
    heads = _all_of(_OTHER_HEAD, config.architectures)
    if heads and not _is_decoder(config):
        return f"saved as {heads[0]} ({kind}), which was not trained to predict the next token"
    return None if own_code else _not_causal_in_transformers(config, kind)


def _not_causal_in_transformers(config: Any, kind: str) -> str | None:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"of {kind}, for which transformers has no causal language model"
    text = config.get_text_config()
    reason = _goes_both_ways(config, text)
    if reason is not None:
        return f"an encoder ({kind} with {reason}), whose tokens see those after them"
    bodies = _all_of(_BODY, config.architectures)
    if bodies and not getattr(text, "tie_word_embeddings", True):
        return f"saved as {bodies[0]} ({kind}), without the head that predicts the next token"
    return None


def _goes_both_ways(config: Any, text: Any) -> str | None:
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return "use_bidirectional_attention"
    # GPT-NeoX has is_decoder false too, and is causal; but a causal model has no masked-LM class.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _is_decoder(config):
        return "is_decoder false"
    return None


def _all_of(pattern: re.Pattern[str], names: Sequence[str] | None) -> list[str]:
    """The names, if all of them match a pattern; else none."""
    return list(names) if names and all(map(pattern.fullmatch, names)) else []


@torch.no_grad()
def reads_ahead(model: Any) -> bool:
    """Whether changing the last token changes the logits before it, as it does with bidirectional attention."""
    if model.device.type == "meta":  # which computes nothing
        return False
    vocabulary = model.config.get_text_config().vocab_size
    ids_T = torch.arange(_CHECK_TOKENS, device=model.device) * 7 % vocabulary
    other_T = ids_T.clone()
    other_T[-1] = (ids_T[-1] + 1) % vocabulary
    # One sequence at a time: in a batch, models that share work over it (mixtures of experts) round differently.
    said, otherwise = (
        model(input_ids=ids_T[None], use_cache=False).logits[0, : _CHECK_TOKENS - 1].float()
        for ids_T in (ids_T, other_T)
    )
    changed, spread = (said - otherwise).norm(), (said - said.mean()).norm()
    return bool(changed > _READS_AHEAD.get(model.dtype, _READS_AHEAD_IN_16_BITS) * spread)


def _is_decoder(config: Any) -> bool:
    # XLM uses another name.
    return bool(getattr(config, "is_decoder", getattr(config, "causal", False)))
