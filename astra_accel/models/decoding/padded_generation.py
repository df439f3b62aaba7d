"""Decoding that reads every context from its start, for models whose caches can't be carried between turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.length_regimes import length_regimes
from astra_accel.models.decoding.token_sampling import draw_on_device, looked_at, steps_at_once
from astra_accel.models.forward.capabilities import CHECK_LENGTH, assert_same, check_sequences, plain_logprobs, supports
from astra_accel.models.forward.head import token_logprobs
from astra_accel.models.forward.padded import forward_logits, left_padded, positions
from astra_accel.models.forward.prefix_tree import Ids


def generate_padded(
    model: Any,
    contexts: Sequence[Ids],
    keys_BT2: torch.Tensor,
    sampling: SamplingConfiguration,
    end_ids: frozenset[int],
    *,
    num_ids: int | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Sample a continuation of each context, in one batch; returns the ids of each row and their log-probs.

    If the model's rows may change places, rows with the same context read it once, and rows that have ended are no
    longer fed.
    """
    moves = moves_rows(model)
    begun = list(dict.fromkeys(contexts)) if moves else list(contexts)
    batch = _Padded(model)
    logits_BV = batch.begin(begun)
    if moves:
        index_of = {context: index for index, context in enumerate(begun)}
        fork = [index_of[context] for context in contexts]
        batch.select(fork)
        logits_BV = logits_BV[fork]

    results: list[tuple[list[int], list[float]]] = [([], []) for _ in contexts]
    rows = list(range(len(contexts)))
    ended: set[int] = set()
    at_once = steps_at_once(model.device)
    for step in range(0, sampling.max_new_tokens, at_once):
        drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
        for keys_B2 in keys_BT2[rows, step : step + at_once].unbind(1):
            if drawn:
                logits_BV = batch.step(drawn[-1][0])
            drawn.append(draw_on_device(logits_BV, keys_B2, sampling, num_ids))
        for row, (tokens, logprobs) in zip(rows, looked_at(drawn, end_ids), strict=True):
            if row not in ended:
                results[row][0].extend(tokens)
                results[row][1].extend(logprobs)
        ended = {row for row, (tokens, _) in enumerate(results) if tokens[-1] in end_ids}
        if len(ended) == len(contexts) or step + at_once >= sampling.max_new_tokens:
            break
        tokens_B = drawn[-1][0]
        keep = [index for index, row in enumerate(rows) if row not in ended]
        if moves and len(keep) < len(rows):
            batch.select(keep)
            rows, tokens_B = [rows[index] for index in keep], tokens_B[keep]
        logits_BV = batch.step(tokens_B)
    return results


def moves_rows(model: Any) -> bool:
    """Whether the rows of a batch may change places, fork and leave; checked once.

    A model that keeps its own states beside the cache (RecurrentGemma) would continue with those of another row.
    """
    return supports(model, "rows that change places", _check_moves, "rows stay in their batch until all have ended")


def takes_padding(model: Any) -> bool:
    """Whether contexts of different lengths can share a batch; checked once.

    Raises:
        UnsupportedModelError: not even contexts of one length can be continued with the model's cache.
    """
    if supports(model, "padded batches", _check_padding, "only sequences of one length share a batch"):
        return True
    supports(model, "decoding with a cache", _check_cache, "", required=True)
    return False


class _Padded:
    """A left-padded batch of contexts, and the cache of a model that reads it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.mask_BT = torch.empty(0, 0, dtype=torch.long)
        self._num_padding: list[int] = []

    def begin(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits after each context."""
        ids_BT, self.mask_BT = left_padded(contexts, self.model.device)
        self._num_padding = [ids_BT.shape[1] - len(context) for context in contexts]
        return self._forward(ids_BT)

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """The logits after one more token of each row."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(tokens_B), 1)], dim=1)
        return self._forward(tokens_B[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only."""
        rows_B = torch.tensor(rows, device=self.model.device)
        self.cache.reorder_cache(rows_B)
        self.mask_BT = self.mask_BT[rows_B]
        self._num_padding = [self._num_padding[row] for row in rows]

    def _forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return forward_logits(
            self.model,
            1,
            input_ids=ids_BT,
            # Some recurrent models take a mask only for their first forward. Without padding none is needed.
            attention_mask=self.mask_BT if any(self._num_padding) else None,
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
        by_regime.setdefault((regimes.regime_of(len(context)), regimes.regime_of(len(context) + 1)), []).append(index)
    for (first, second), rows in by_regime.items():
        if first == second:  # no row is decoded from one regime into the next
            _check_decoding(model, [contexts[row] for row in rows], [pairs[row] for row in rows])


def _check_moves(model: Any) -> None:
    _check_cache(model, moves=True)


def _check_cache(model: Any, moves: bool = False) -> None:
    """Decode up to a length at which something may change, and beyond it unless the length regime changes there."""
    contexts, continuations = check_sequences(model)
    sequences = [ids for ids in map(_joined, contexts, continuations) if len(ids) >= CHECK_LENGTH + 2]
    regimes = length_regimes(model)
    begin = CHECK_LENGTH - int(regimes.regime_of(CHECK_LENGTH) != regimes.regime_of(CHECK_LENGTH + 1))
    pairs = [ids[begin : begin + 2] for ids in sequences]
    _check_decoding(model, [ids[:begin] for ids in sequences], pairs, moves)


def _joined(context: list[int], continuation: list[int]) -> list[int]:
    return [*context, *continuation]


def _check_decoding(model: Any, contexts: Sequence[list[int]], pairs: Sequence[list[int]], moves: bool = True) -> None:
    """Compare log-probs of two tokens after each context: one from reading the context, one from a further step.

    Between the two, rows change places and one forks if ``moves`` is set.
    """
    batch = _Padded(model)
    first_B, second_B = torch.tensor(pairs, device=model.device).unbind(-1)
    read_B = token_logprobs(batch.begin(contexts), first_B)
    order = list(range(len(pairs)))
    if moves:
        order = [*order[::-1], 0]
        batch.select(order)
    fed_B = token_logprobs(batch.step(first_B[order]), second_B[order])
    expected = plain_logprobs(model, contexts, pairs)
    found_B2 = torch.stack([read_B[order], fed_B], dim=-1)
    assert_same(list(found_B2), [expected[row] for row in order], model.dtype)
