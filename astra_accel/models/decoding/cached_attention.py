"""Attention of carried rows to the tokens that they have read.

Rows that share a prefix attend to it together, in one product with its keys (as in Hydragen, Juravsky et al. 2024,
https://arxiv.org/abs/2402.05099). Each row attends alone to what follows it. The two parts are merged exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from astra_accel.models.decoding.kv_cache import CacheBatch
from astra_accel.models.decoding.length_regimes import without_earlier_lengths
from astra_accel.models.forward.attention import (
    PartialAttention,
    Rule,
    added_mask,
    attending,
    attention_part,
    merge_partial_attention,
)
from astra_accel.models.forward.padded import body_of
from astra_accel.models.memory import sent, uploaded

UNKNOWN = -1
"""Stands for a token that is on the device, until the host looks at it."""


class RowLayout:
    """The active rows of some batches, each reading some more tokens.

    Args:
        batches: the batches that hold what the rows have read; the new tokens are added to them.
        tokens: the new tokens of each active row, batch by batch, at least one each; or ``[rows, tokens]``, as many of
            each, which the host does not know yet.
        device: the model's device.
    """

    def __init__(
        self, batches: Sequence[CacheBatch], tokens: Sequence[Sequence[int]] | torch.Tensor, device: torch.device
    ) -> None:
        self._batches = [rows for rows in batches if rows.num_active > 0]
        if isinstance(tokens, torch.Tensor):
            self.input_ids, tokens = tokens, [[UNKNOWN] * tokens.shape[1]] * len(tokens)
            longest = len(tokens[0])
        else:
            longest = max(map(len, tokens))
            self.input_ids = uploaded([[*row, *[0] * (longest - len(row))] for row in tokens], device)
        self._tokens = tokens
        read = [len(ids) for rows in self._batches for ids in rows.ids[: rows.num_active]]
        lengths_B, counts_B, step_T = torch.tensor(read), torch.tensor([*map(len, tokens)]), torch.arange(longest)
        # Padding has its own slots after the row's end, but no position that the model may not know.
        position_BT = lengths_B[:, None] + torch.minimum(step_T, counts_B[:, None] - 1)
        self.position_BT = sent(position_BT, device)
        self._parts: list[tuple[slice, _OwnTokens, _Prefixes | None]] = []
        start = 0
        for rows in self._batches:
            own = slice(start, start + rows.num_active)
            start = own.stop
            prefixes = _Prefixes(rows, self.position_BT[own]) if rows.prefixes.slots.num_slots > 0 else None
            self._parts.append((own, _OwnTokens(rows, longest, device), prefixes))

    def finish(self) -> None:
        """Record that the rows have read their tokens."""
        given = iter(self._tokens)
        for rows in self._batches:
            for ids in rows.ids[: rows.num_active]:
                ids.extend(next(given))

    def attend(
        self, layer: int, query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """See :class:`~astra_accel.models.forward.attention.Layout`."""
        outputs = []
        for own, own_tokens, prefixes in self._parts:
            own_tokens.write(layer, key_BHTD[own], value_BHTD[own])
            part = own_tokens.attend(layer, query_BHTD[own], rule)
            output_BHTD = part.output_BHQD
            if prefixes is not None:
                output_BHTD = merge_partial_attention(part, prefixes.attend(layer, query_BHTD[own], rule))
            outputs.append(output_BHTD.to(query_BHTD.dtype))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).transpose(1, 2)


class _OwnTokens:
    """The tokens that the active rows of a batch have read after their prefixes, and those that they read now."""

    def __init__(self, rows: CacheBatch, num_tokens: int, device: torch.device) -> None:
        lengths = [rows.num_own(row) for row in range(rows.num_active)]
        self._rows = rows
        self._num_visible = max(lengths) + num_tokens
        self._slots_BT = uploaded(lengths, device)[:, None] + torch.arange(num_tokens, device=device)
        self._row_B1 = torch.arange(rows.num_active, device=device)[:, None]
        self._masks: dict[int | None, torch.Tensor] = {}

    def write(self, layer: int, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor) -> None:
        """Store the states of the tokens that are read now."""
        buffers = self._rows.slots.layer(layer, key_BGTD[0])
        for buffer, states_BGTD in zip(buffers, (key_BGTD, value_BGTD), strict=True):
            buffer.transpose(1, 2)[self._row_B1, self._slots_BT] = states_BGTD.transpose(1, 2)

    def attend(self, layer: int, query_BHTD: torch.Tensor, rule: Rule) -> PartialAttention:
        """Attention to these tokens alone."""
        both = self._rows.slots.buffers[layer]
        assert both is not None, "slots that were given up"
        key_BGKD, value_BGKD = (buffer[: self._rows.num_active, :, : self._num_visible] for buffer in both)
        if rule.window not in self._masks:
            # Slots are as far from one another as positions.
            self._masks[rule.window] = added_mask(self._slots_BT, self._num_visible, rule.window, torch.float32)
        return attention_part(query_BHTD, key_BGKD, value_BGKD, self._masks[rule.window], rule)


class _Prefixes:
    """The prefixes of a batch, each with its active rows, whose queries attend to its keys together."""

    def __init__(self, rows: CacheBatch, position_BT: torch.Tensor) -> None:
        self._slots = rows.prefixes.slots
        sharing: list[list[int]] = [[] for _ in rows.prefixes.ids]
        for row, prefix in enumerate(rows.prefix_of[: rows.num_active]):
            sharing[prefix].append(row)
        most = max(map(len, sharing))
        # Prefixes with fewer rows than the most, or none, are filled up with row 0, whose result is not used.
        filled = [[*each, *[0] * (most - len(each))] for each in sharing]
        place = {row: prefix * most + step for prefix, each in enumerate(sharing) for step, row in enumerate(each)}
        device = position_BT.device
        self._rows_CS = uploaded(filled, device)
        self._place_B = uploaded([place[row] for row in range(rows.num_active)], device)
        self._in_order = [row for each in filled for row in each] == list(range(rows.num_active))
        self._lengths = [*map(len, rows.prefixes.ids)]
        self._position_CQ = position_BT[self._rows_CS].flatten(1)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def attend(self, layer: int, query_BHTD: torch.Tensor, rule: Rule) -> PartialAttention:
        """Attention to the prefixes alone."""
        both = self._slots.buffers[layer]
        assert both is not None, "slots that were given up"
        part = attention_part(self._together(query_BHTD), *both, self._mask(rule.window), rule)
        return PartialAttention(*map(self._apart, part))

    def _together(self, states_BHTD: torch.Tensor) -> torch.Tensor:
        """The states of the rows of each prefix, ``[prefixes, heads, rows x tokens, dim]``."""
        size = self._rows_CS.shape
        states_CSHTD = states_BHTD.unflatten(0, size) if self._in_order else states_BHTD[self._rows_CS]
        return states_CSHTD.transpose(1, 2).flatten(2, 3)

    def _apart(self, states_CHQ: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`_together`: ``[rows, heads, tokens, ...]``."""
        states_PHT = states_CHQ.unflatten(2, (self._rows_CS.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return states_PHT if self._in_order else states_PHT[self._place_B]

    def _mask(self, window: int | None) -> torch.Tensor | None:
        if window not in self._masks:
            self._masks[window] = self._made_mask(window)
        return self._masks[window]

    def _made_mask(self, window: int | None) -> torch.Tensor | None:
        """``[prefixes, queries or 1, keys]``: a token after a prefix sees all of it, except for a window."""
        num_keys = self._slots.num_slots
        if window is None and min(self._lengths) == num_keys:
            return None
        device = self._position_CQ.device
        last_C1 = uploaded(self._lengths, device)[:, None] - 1
        mask_CQK = added_mask(last_C1, num_keys, None, torch.float32)
        if window is None:
            return mask_CQK
        return mask_CQK + added_mask(self._position_CQ, num_keys, window, torch.float32)


def feed(model: Any, batches: Sequence[CacheBatch], tokens: Sequence[Sequence[int]] | torch.Tensor) -> torch.Tensor:
    """Make every active row read some more tokens, at least one each; see :class:`RowLayout`.

    Tokens that the host does not know are recorded as :data:`UNKNOWN`, to be replaced before a row is looked up.

    Returns:
        The body's output ``[active rows, longest, hidden]``; rows are padded on the right, and the values there mean
        nothing.
    """
    layout = RowLayout(batches, tokens, model.device)
    with attending(model, layout), without_earlier_lengths(model):
        hidden_BTH = body_of(model)(input_ids=layout.input_ids, position_ids=layout.position_BT, use_cache=False)[0]
    layout.finish()
    return hidden_BTH
