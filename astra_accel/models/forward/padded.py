"""Group token sequences into padded batches that waste little."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from astra_accel.models.decoding.length_regimes import without_earlier_lengths


def by_length(lengths: Sequence[int], max_rows: int, max_tokens: int | None = None) -> Iterator[list[int]]:
    """Group indices by similar length: at most ``max_rows``, and ``max_tokens`` with padding (one row always fits)."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        tokens = lengths[index] * (len(group) + 1)
        if group and (len(group) == max_rows or (max_tokens is not None and tokens > max_tokens)):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def cheapest_groups(lengths: Sequence[int], keys: Sequence[Hashable], max_rows: int, price: float) -> list[list[int]]:
    """Group rows to decode together, so that as little as possible is read a step.

    A group costs ``price``, plus its rows times its longest length. Rows of similar length share a group, and rows of
    one key stay together where they fit.

    Args:
        lengths: the length of each row's context.
        keys: rows with the same key have the same context.
        max_rows: the most rows of a group.
        price: the fixed cost of a group, in tokens.
    """
    by_key: dict[Hashable, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        by_key.setdefault(keys[row], []).append(row)
    pieces = [rows[at : at + max_rows] for rows in by_key.values() for at in range(0, len(rows), max_rows)]
    # The cheapest way to group the pieces up to each, and where its last group begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end, piece in enumerate(pieces, start=1):
        num_rows, choices = 0, []
        for begin in range(end - 1, -1, -1):
            num_rows += len(pieces[begin])
            if num_rows > max_rows:
                break
            choices.append((best[begin][0] + price + num_rows * lengths[piece[0]], begin))
        best.append(min(choices))
    groups = []
    end = len(pieces)
    while end > 0:
        begin = best[end][1]
        groups.append([row for piece in pieces[begin:end] for row in piece])
        end = begin
    return groups[::-1]


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``(ids, mask)``, both ``[batch, longest]`` int64; the mask is 0 at the padding on the left.

    The ids at the padding are 0. The mask follows from positions, not from ids, so a pad token that equals the
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
    """The position of each token among the real ones of its row, ``[batch, tokens]``; 0 at the padding."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def forward_logits(model: Any, num_last: int, **inputs: Any) -> torch.Tensor:
    """The logits of the last ``num_last`` positions, ``[batch, num_last, vocabulary]``.

    The head runs only at those positions if the model can do that. Models without ``position_ids`` (whose positions
    follow from the attention mask) are not given them, and recurrent models get their cache under its own name.
    """
    # PEFT's wrapper passes any argument on; the signature of what it wraps lists those that it takes.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = _accepted(type(inner).forward)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = num_last
    if "cache_params" in accepted and "past_key_values" in inputs:
        inputs["cache_params"] = inputs.pop("past_key_values")  # what Mamba calls it
    with without_earlier_lengths(inner):
        return model(**_without_positions(inputs, accepted)).logits[:, -num_last:]


def forward_hidden(model: Any, **inputs: Any) -> torch.Tensor:
    """The output of a model's body, ``[batch, tokens, hidden]``; positions as in :func:`forward_logits`."""
    body = body_of(model)
    with without_earlier_lengths(model):
        return body(**_without_positions(inputs, _accepted(type(body).forward)))[0]


def body_of(model: Any) -> Any:
    """The part of a transformers model below its head."""
    # Llama 4's text model returns itself as its base.
    return getattr(model, "model", model) if model.base_model is model else model.base_model


def _without_positions(inputs: dict[str, Any], accepted: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "position_ids" or name in accepted}


@lru_cache
def _accepted(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
