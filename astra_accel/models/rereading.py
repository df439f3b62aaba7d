"""Decoding that reads every context anew: for models whose caches can't be carried from one turn to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from astra_accel.config import SamplingConfiguration
from astra_accel.models.batching import forward_logits, left_padded, positions
from astra_accel.models.head import token_logprobs
from astra_accel.models.length_regimes import length_regimes
from astra_accel.models.sampling import draw
from astra_accel.models.support import CHECK_LENGTH, assert_same, check_sequences, plain_logprobs, supports

Ids = tuple[int, ...]


def reread(
    model: Any,
    contexts: Sequence[Ids],
    keys_BT2: torch.Tensor,
    sampling: SamplingConfiguration,
    end_ids: frozenset[int],
    *,
    num_ids: int | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Sample a continuation of each context, in one batch: the ids of each row and their log-probs.

    Rows with the same context read it once, and rows that have ended are fed no more.
    """
    unique = list(dict.fromkeys(contexts))
    batch = _Padded(model)
    logits_UV = batch.begin(unique)
    index_of = {context: index for index, context in enumerate(unique)}
    fork = [index_of[context] for context in contexts]
    batch.select(fork)
    logits_BV = logits_UV[fork]

    results: list[tuple[list[int], list[float]]] = [([], []) for _ in contexts]
    active = list(range(len(contexts)))
    for step in range(sampling.max_new_tokens):
        tokens, logprobs = draw(logits_BV, keys_BT2[active, step], sampling, num_ids)
        for row, token, logprob in zip(active, tokens, logprobs, strict=True):
            results[row][0].append(token)
            results[row][1].append(logprob)
        keep = [index for index, token in enumerate(tokens) if token not in end_ids]
        if not keep or step + 1 == sampling.max_new_tokens:
            break
        if len(keep) < len(active):
            batch.select(keep)
            active = [active[index] for index in keep]
        logits_BV = batch.step([tokens[index] for index in keep])
    return results


def takes_padding(model: Any) -> bool:
    """Whether contexts of different lengths can share a batch; found out once.

    Raises:
        UnsupportedModelError: not even contexts of one length can be continued with the model's cache.
    """
    if supports(model, "padded batches", _check_padding, "only sequences of one length share a batch"):
        return True
    supports(model, "decoding with a cache", _check_cache, "", required=True)
    return False


class _Padded:
    """A batch of contexts, filled up on the left, and the cache of a model that reads it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.mask_BT = torch.empty(0, 0, dtype=torch.long)

    def begin(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits behind each context."""
        ids_BT, self.mask_BT = left_padded(contexts, self.model.device)
        return self._forward(ids_BT)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits behind one more token of each row."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(tokens), 1)], dim=1)
        return self._forward(torch.tensor(tokens, device=self.model.device)[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Take these rows on from here."""
        rows_B = torch.tensor(rows, device=self.model.device)
        self.cache.reorder_cache(rows_B)
        self.mask_BT = self.mask_BT[rows_B]

    def _forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return forward_logits(
            self.model,
            1,
            input_ids=ids_BT,
            # Some recurrent models take a mask for their first forward alone. Without padding none is needed.
            attention_mask=None if self.mask_BT.all() else self.mask_BT,
            position_ids=positions(self.mask_BT)[:, -ids_BT.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        )[:, -1]


def _check_padding(model: Any) -> None:
    contexts, continuations = check_sequences(model)
    pairs = [continuation[:2] for continuation in continuations]
    regimes = length_regimes(model)
    by_regime: dict[tuple[int, int], list[int]] = {}
    for index, context in enumerate(contexts):
        by_regime.setdefault((regimes.of(len(context)), regimes.of(len(context) + 1)), []).append(index)
    for (first, second), rows in by_regime.items():
        if first == second:  # no row is decoded from one regime into the next
            _check_decoding(model, [contexts[row] for row in rows], [pairs[row] for row in rows])


def _check_cache(model: Any) -> None:
    """Decode up to a length at which something may change, and beyond it where nothing is known to."""
    contexts, continuations = check_sequences(model)
    sequences = [ids for ids in map(_joined, contexts, continuations) if len(ids) >= CHECK_LENGTH + 2]
    regimes = length_regimes(model)
    begin = CHECK_LENGTH - int(regimes.of(CHECK_LENGTH) != regimes.of(CHECK_LENGTH + 1))
    _check_decoding(model, [ids[:begin] for ids in sequences], [ids[begin : begin + 2] for ids in sequences])


def _joined(context: list[int], continuation: list[int]) -> list[int]:
    return [*context, *continuation]


def _check_decoding(model: Any, contexts: Sequence[list[int]], pairs: Sequence[list[int]]) -> None:
    """Compare the log-probs of two tokens behind each context: the first read, the second fed.

    Between the two, rows change places and one forks. A model that keeps states of its own beside the cache
    (RecurrentGemma) would go on with those of another row.
    """
    batch = _Padded(model)
    first_B, second_B = torch.tensor(pairs, device=model.device).unbind(-1)
    read_B = token_logprobs(batch.begin(contexts), first_B)
    order = [*range(len(pairs))[::-1], 0]
    batch.select(order)
    fed_B = token_logprobs(batch.step(first_B[order].tolist()), second_B[order])
    expected = plain_logprobs(model, contexts, pairs)
    found_B2 = torch.stack([read_B[order], fed_B], dim=-1)
    assert_same(list(found_B2), [expected[row] for row in order], model.dtype)
