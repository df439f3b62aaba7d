"""Decoding with a cache: what is drawn depends on a row's context and its own random numbers alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from astra_accel.config import SamplingConfiguration
from astra_accel.models.batching import by_length, forward_logits, left_padded, positions
from astra_accel.models.sampling import exact_device, sample

Ids = tuple[int, ...]


# no_grad and not inference_mode: models keep tensors that they make in a forward (rotary tables that grow), and
# an inference tensor among them would break the next backward of the weights that the roles share.
@torch.no_grad()
def generate(
    model: Any,
    contexts: Sequence[Ids],
    uniforms: Sequence[np.ndarray],
    sampling: SamplingConfiguration,
    *,
    end_ids: Collection[int],
    batch_rows: int = 64,
) -> list[Ids]:
    """Sample a continuation of each context.

    Args:
        model: a causal language model of transformers, in eval mode.
        contexts: token ids. Rows with the same context read it once.
        uniforms: for each row ``max_new_tokens`` numbers in [0, 1), one a token.
        sampling: temperature, top-k, top-p and the most tokens.
        end_ids: tokens that end a turn.
        batch_rows: rows decoded together at most.

    Returns:
        The sampled ids of each row; the last one is in ``end_ids`` unless the length limit cut the row.
    """
    rows_of: dict[Ids, list[int]] = {}
    for row, context in enumerate(contexts):
        rows_of.setdefault(tuple(context), []).append(row)
    # Rows of one context stay neighbours under a stable sort, so a group rarely splits them.
    lengths = [len(context) for context, rows in rows_of.items() for _ in rows]
    order = [row for rows in rows_of.values() for row in rows]
    results: list[Ids] = [()] * len(contexts)
    for group in by_length(lengths, max_rows=batch_rows):
        rows = [order[index] for index in group]
        numbers = torch.from_numpy(np.stack([uniforms[row] for row in rows])).to(exact_device(model.device))
        sampled = _decode(model, [tuple(contexts[row]) for row in rows], numbers, sampling, frozenset(end_ids))
        for row, ids in zip(rows, sampled, strict=True):
            results[row] = ids
    return results


def _decode(
    model: Any,
    contexts: Sequence[Ids],
    uniforms_BT: torch.Tensor,
    sampling: SamplingConfiguration,
    end_ids: frozenset[int],
) -> list[Ids]:
    unique = list(dict.fromkeys(contexts))
    cache = DynamicCache(config=model.config)
    ids_UT, mask_UT = left_padded(unique, model.device)
    logits_UV = forward_logits(
        model,
        1,
        input_ids=ids_UT,
        attention_mask=mask_UT,
        position_ids=positions(mask_UT),
        past_key_values=cache,
        use_cache=True,
    )[:, -1]
    index_of = {context: index for index, context in enumerate(unique)}
    fork_B = torch.tensor([index_of[context] for context in contexts], device=model.device)
    cache.batch_select_indices(fork_B)
    logits_BV, mask_BT = logits_UV[fork_B], mask_UT[fork_B]

    sampled: list[list[int]] = [[] for _ in contexts]
    active = list(range(len(contexts)))
    for turn in range(sampling.max_new_tokens):
        drawn_B = sample(logits_BV.to(uniforms_BT.device), uniforms_BT[active, turn], sampling)
        tokens, tokens_B = drawn_B.tolist(), drawn_B.to(model.device)
        for row, token in zip(active, tokens, strict=True):
            sampled[row].append(token)
        keep = [index for index, token in enumerate(tokens) if token not in end_ids]
        if not keep or turn + 1 == sampling.max_new_tokens:
            break
        if len(keep) < len(active):
            keep_B = torch.tensor(keep, device=model.device)
            cache.batch_select_indices(keep_B)
            tokens_B, mask_BT = tokens_B[keep_B], mask_BT[keep_B]
            active = [active[index] for index in keep]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(active), 1)], dim=1)
        logits_BV = forward_logits(
            model,
            1,
            input_ids=tokens_B[:, None],
            attention_mask=mask_BT,
            position_ids=positions(mask_BT)[:, -1:],
            past_key_values=cache,
            use_cache=True,
        )[:, -1]
    return [tuple(ids) for ids in sampled]
