"""Log-probabilities of token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from astra_accel.models.batching import by_length, forward_logits, left_padded, positions

Ids = Sequence[int]


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """``log softmax(logits)[token]`` in float32, without a log-softmax of the size of the logits.

    Args:
        logits: ``[..., vocabulary]``, any float type.
        tokens: ``[...]`` int64.
    """
    logits = logits.float()
    return logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)


def sequence_logprobs(
    model: Any, contexts: Sequence[Ids], continuations: Sequence[Ids], *, token_budget: int = 8192
) -> list[torch.Tensor]:
    """The log-prob of every token of each continuation, given its context and the tokens before it.

    Args:
        model: a causal language model of transformers.
        contexts: token ids, at least one each.
        continuations: token ids, none at all allowed.
        token_budget: tokens of one forward, padding included, where gradients are off. With gradients there is one
            forward: the graphs of several would be kept all the same, and every process has to run as many.

    Returns:
        A float32 vector for each continuation, on the model's device, with gradient where the model's parameters
        want one and gradients are on.

    Raises:
        ValueError: the lists differ in length, or a context is empty.
    """
    if len(contexts) != len(continuations):
        raise ValueError(f"{len(contexts)} contexts and {len(continuations)} continuations: expected as many of each")
    for index, context in enumerate(contexts):
        if len(context) == 0:
            raise ValueError(f"context {index} is empty: its continuation's first token has nothing to follow")
    empty = torch.zeros(0, device=model.device)
    results = [empty] * len(contexts)
    scored = [index for index, continuation in enumerate(continuations) if len(continuation) > 0]
    lengths = [len(contexts[index]) + len(continuations[index]) for index in scored]
    max_tokens = None if torch.is_grad_enabled() else token_budget
    for group in by_length(lengths, max_rows=len(scored), max_tokens=max_tokens):
        rows = [scored[index] for index in group]
        logprobs = _padded_logprobs(model, [contexts[row] for row in rows], [continuations[row] for row in rows])
        for row, values in zip(rows, logprobs, strict=True):
            results[row] = values
    return results


def _padded_logprobs(model: Any, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> list[torch.Tensor]:
    """One forward for all rows. Left padding lines the continuations up at the end, where the head runs."""
    sequences = [[*context, *continuation] for context, continuation in zip(contexts, continuations, strict=True)]
    ids_BT, mask_BT = left_padded(sequences, model.device)
    num_scored = max(map(len, continuations))
    logits_BSV = forward_logits(
        model,
        num_scored + 1,
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions(mask_BT),
        use_cache=False,
    )[:, :-1]
    logprobs_BS = token_logprobs(logits_BSV, ids_BT[:, -num_scored:])
    return [row[num_scored - len(continuation) :] for row, continuation in zip(logprobs_BS, continuations, strict=True)]


def pad_logprobs(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Vectors as rows of ``[batch, longest]``, 0 where a row has no token (what the systems return)."""
    return torch.nn.utils.rnn.pad_sequence(list(logprobs), batch_first=True)
