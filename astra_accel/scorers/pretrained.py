"""What the scorers on Hugging Face models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def load_frozen(auto_class: Any, name: str, device: str | torch.device, dtype: str | torch.dtype | None) -> Any:
    """The model of a hub id or folder on a device, in eval mode and without gradients.

    Args:
        auto_class: A transformers class with ``from_pretrained``.
        name: A hub id or a local folder.
        device: Where the model goes.
        dtype: Of the weights; None and "auto" keep the checkpoint's.

    Raises:
        ValueError: The checkpoint lacks weights of this architecture. Transformers would draw them at random,
            and the scores of a random head are noise.
    """
    model, info = auto_class.from_pretrained(name, dtype="auto" if dtype is None else dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{name} has no weights for {', '.join(sorted(info['missing_keys']))} of {type(model).__name__}"
        )
    return freeze(model, device)


def freeze(model: Any, device: str | torch.device) -> Any:
    """The model, moved to the device, in eval mode and without gradients."""
    return model.to(device).eval().requires_grad_(False)


def longest_input(model: Any, tokenizer: Any, max_length: int | None = None) -> int | None:
    """How many tokens, special ones included, the model may be given; None if nothing limits it.

    The least of the tokenizer's ``model_max_length`` (1e30 when it was never set), the config's
    ``max_position_embeddings``, the positions that the embedding table really has, and ``max_length``.

    Raises:
        ValueError: ``max_length`` is below 1 or above what the model reads.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or -1
    limits = [n for n in (tokenizer.model_max_length, positions, *_table_positions(model)) if 0 < n < 1e9]
    limit = int(min(limits)) if limits else None
    if max_length is None:
        return limit
    if max_length < 1 or (limit is not None and max_length > limit):
        raise ValueError(f"max_length is {max_length}, expected from 1 to {limit or 'any number'} tokens")
    return max_length


def _table_positions(model: Any) -> list[int]:
    # RoBERTa and its kin number positions from padding_idx + 1, so their table holds fewer than its size.
    return [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]


def label_index(names: Sequence[str], label: str) -> int:
    """The index of a label, whatever its case; ValueError lists the labels if there is none of that name."""
    folded = [name.casefold() for name in names]
    if label.casefold() not in folded:
        raise ValueError(f"unknown label {label!r}: the model has {', '.join(map(repr, names))}")
    return folded.index(label.casefold())


def encodable(text: str) -> str:
    """The text with each lone surrogate, which tokenizers refuse, replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
