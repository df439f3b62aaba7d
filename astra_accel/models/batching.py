"""Grouping token sequences to padded batches that waste little."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch


def by_length(lengths: Sequence[int], max_rows: int, max_tokens: int | None = None) -> Iterator[list[int]]:
    """Indices in groups of similar length: at most ``max_rows``, and ``max_tokens`` with padding (one row fits)."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        tokens = lengths[index] * (len(group) + 1)
        if group and (len(group) == max_rows or (max_tokens is not None and tokens > max_tokens)):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``(ids, mask)``, both ``[batch, longest]`` int64; the mask is 0 at the padding on the left.

    The ids at the padding are 0. Masked by position and not by value, so a pad token that equals the
    end-of-text token does no harm.
    """
    longest = max(map(len, sequences))
    ids_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, sequence in enumerate(sequences):
        ids_BT[row, longest - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        mask_BT[row, longest - len(sequence) :] = 1
    return ids_BT.to(device), mask_BT.to(device)


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Position of each token among the real ones of its row, ``[batch, tokens]``; 0 at the padding."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def forward_logits(model: Any, num_last: int, **inputs: Any) -> torch.Tensor:
    """The logits of the last ``num_last`` positions, ``[batch, num_last, vocabulary]``.

    The head runs at those positions alone where the model can do that, and models without ``position_ids`` (whose
    positions follow from the attention mask) are not given them.
    """
    # PEFT's wrapper takes and hands on anything; what it wraps says what it takes.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = _accepted(type(inner).forward)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = num_last
    if "position_ids" not in accepted:
        inputs.pop("position_ids", None)
    return model(**inputs).logits[:, -num_last:]


@lru_cache
def _accepted(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
