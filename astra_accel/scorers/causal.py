"""What scorers with causal models share: a verdict is the next token, of one of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def left_pad(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as ids and attention mask, both ``[rows, longest]``, padded on the left."""
    width = max(map(len, rows))
    # A masked position may hold any id.
    ids_BT = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids_BT, mask_BT


@torch.inference_mode()
def preferences(model: Any, rows: Sequence[list[int]], one: Sequence[int], other: Sequence[int]) -> list[float]:
    """For each row of ids, the probability that a token of its own follows rather than another, of these two alone.

    Args:
        model: a causal model.
        rows: what it reads.
        one, other: for each row, the id whose probability is returned, and the id that it is compared with.
    """
    ids_BT, mask_BT = left_pad(rows)
    logits_BV = model(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        position_ids=(mask_BT.cumsum(dim=-1) - 1).clamp(min=0).to(model.device),
        logits_to_keep=1,
        use_cache=False,
    ).logits[:, -1]
    row_B = torch.arange(len(rows))
    # The softmax over two logits is the sigmoid of their difference.
    margin_B = logits_BV[row_B, list(one)].float() - logits_BV[row_B, list(other)].float()
    return margin_B.sigmoid().tolist()


def without_oldest(tokenizer: Any, turns: Sequence[str], num_tokens: int) -> list[str]:
    """Drop the first ``num_tokens`` tokens of some turns, and at least one character; the tokenizer is a fast one."""
    kept = []
    for text in turns:
        spans = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        ).offset_mapping
        dropped = min(num_tokens, len(spans))
        num_tokens -= dropped
        # A tokenizer may leave a leading space out of its token's span; the cut must still include it.
        start = max(1, spans[dropped - 1][1]) if dropped else 0
        kept.append("" if dropped == len(spans) else text[start:])
    return kept
