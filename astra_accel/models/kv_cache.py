"""Keys and values of conversations that grow, fork, and end one by one.

The cache of a row holds its token at position ``p`` in slot ``p``, whatever else is in the batch: pieces of different
lengths leave no gaps, a row can be cut back to any prefix, and who sees whom follows from positions alone.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from astra_accel.models.attention import Rule, added_mask, attending, grouped_attention
from astra_accel.models.prefix_tree import num_shared

Ids = tuple[int, ...]


@dataclass
class Bin:
    """Rows of like length, their keys and values ``[rows, heads, slots, dim]`` a layer, written in place.

    Attributes:
        ids: the tokens that each row has read.
        num_slots: tokens that a row may come to.
        num_active: the first rows take part in forwards; those that have ended are moved behind them and stay.
        buffers: keys and values by layer; None where they were given up.
    """

    ids: list[list[int]]
    num_slots: int
    num_active: int = field(init=False)
    buffers: dict[int, tuple[torch.Tensor, torch.Tensor] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_active = len(self.ids)

    def rows(self) -> list[CachedRow]:
        """All rows, those that have ended too."""
        return [CachedRow(self, row, tuple(ids)) for row, ids in enumerate(self.ids)]

    def layer(self, index: int, like_HMD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, with heads, dtype and device of some states ``[heads, any, dim]``."""
        found = self.buffers.get(index)
        if found is None:
            num_heads, _, dim = like_HMD.shape
            shape = (len(self.ids), num_heads, self.num_slots, dim)
            found = self.buffers[index] = _zeros(shape, like_HMD), _zeros(shape, like_HMD)
        return found

    def end(self, places: Sequence[int]) -> list[int]:
        """Take some active rows out of further forwards; gives the old place of each row that stays active."""
        ended = set(places)
        num_staying = self.num_active - len(ended)
        holes = sorted(place for place in ended if place < num_staying)
        movers = [place for place in range(num_staying, self.num_active) if place not in ended]
        order = list(range(num_staying))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
            self.ids[hole], self.ids[mover] = self.ids[mover], self.ids[hole]
        if holes:
            for both in self.buffers.values():
                for buffer in both or ():
                    buffer[holes + movers] = buffer[movers + holes]
        self.num_active = num_staying
        return order

    def write(self, layer: int, key_HND: torch.Tensor, value_HND: torch.Tensor, paths: Mapping[int, list[int]]) -> None:
        """Take a layer's states of rows from a packed forward: for each row the nodes of its tokens."""
        longest = max(map(len, paths.values()))
        nodes_RL = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths.values()])
        for buffer, states_HND in zip(self.layer(layer, key_HND), (key_HND, value_HND), strict=True):
            states_HRLD = states_HND[:, nodes_RL.to(states_HND.device)]
            buffer[list(paths), :, :longest] = states_HRLD.transpose(0, 1)

    def copy(self, sources: Sequence[CachedRow], last_use: Sequence[Bin]) -> None:
        """Take the states of what the first rows have read from a row each that begins with it.

        Bins in ``last_use`` are emptied on the way, a layer at a time, so that no two copies are held at once.
        """
        by_bin: dict[int, tuple[Bin, list[tuple[int, int]]]] = {}
        for place, source in enumerate(sources):
            by_bin.setdefault(id(source.bin), (source.bin, []))[1].append((place, source.row))
        for other, pairs in by_bin.values():
            for layer, both in other.buffers.items():
                assert both is not None, "a bin that was given up"
                for buffer, states_RHKD in zip(self.layer(layer, both[0][0]), both, strict=True):
                    for mine, theirs in pairs:
                        length = len(self.ids[mine])
                        buffer[mine, :, :length] = states_RHKD[theirs, :, :length]
                if any(other is used for used in last_use):
                    other.buffers[layer] = None


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since a slot that nobody wrote is seen by nobody, but 0 x NaN would be NaN.

    On a CPU in pages of their own: a page that nobody writes to is never there, and the system has all of them back
    at once, where a memory allocator would keep the holes that a layer's buffers leave.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, max(1, prod(shape) * like.element_size()))
    if hasattr(pages, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: smaller ones do as well, slower
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype, count=prod(shape)).view(shape)


@dataclass(frozen=True)
class CachedRow:
    """A row of a bin, and what it has read."""

    bin: Bin
    row: int
    ids: Ids


class RowLayout:
    """The active rows of some bins, each reading some more tokens.

    Args:
        bins: what the rows have read, to which the new tokens are added.
        tokens: of each active row, bin by bin, at least one each.
        device: of the model.
    """

    def __init__(self, bins: Sequence[Bin], tokens: Sequence[Sequence[int]], device: torch.device) -> None:
        self._bins = [rows for rows in bins if rows.num_active > 0]
        self._tokens = tokens
        read = [len(ids) for rows in self._bins for ids in rows.ids[: rows.num_active]]
        longest = max(map(len, tokens))
        lengths_B, counts_B, step_T = torch.tensor(read), torch.tensor([*map(len, tokens)]), torch.arange(longest)
        # Filling has slots of its own, behind the row's end, but no position that the model may not know.
        self._slots_BT = (lengths_B[:, None] + step_T).to(device)
        self.position_BT = (lengths_B[:, None] + torch.minimum(step_T, counts_B[:, None] - 1)).to(device)
        self.input_ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens], device=device)
        self._num_visible = [longest + max(len(ids) for ids in rows.ids[: rows.num_active]) for rows in self._bins]
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def finish(self) -> None:
        """The rows have read their tokens."""
        given = iter(self._tokens)
        for rows in self._bins:
            for ids in rows.ids[: rows.num_active]:
                ids.extend(next(given))

    def attend(
        self, layer: int, query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """See :class:`~astra_accel.models.attention.Layout`."""
        outputs, start = [], 0
        for number, rows in enumerate(self._bins):
            own = slice(start, start + rows.num_active)
            start = own.stop
            slots_BT, row_B1 = self._slots_BT[own], torch.arange(rows.num_active, device=query_BHTD.device)[:, None]
            read = []
            for buffer, states_BHTD in zip(rows.layer(layer, key_BHTD[0]), (key_BHTD, value_BHTD), strict=True):
                buffer.transpose(1, 2)[row_B1, slots_BT] = states_BHTD[own].transpose(1, 2)
                read.append(buffer[: rows.num_active, :, : self._num_visible[number]])
            mask_BTK = self._mask(number, slots_BT, rule.window, query_BHTD.dtype)
            outputs.append(grouped_attention(query_BHTD[own], read[0], read[1], mask_BTK, rule))
        return torch.cat(outputs)

    def _mask(self, number: int, slots_BT: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        if (number, window) not in self._masks:
            self._masks[number, window] = added_mask(slots_BT, self._num_visible[number], window, dtype)
        return self._masks[number, window]


def feed(model: Any, bins: Sequence[Bin], tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Let every active row read some more tokens, at least one each.

    Returns:
        The body's output ``[active rows, longest, hidden]``; rows are filled up on the right, and what stands there
        means nothing.
    """
    layout = RowLayout(bins, tokens, model.device)
    with attending(model, layout):
        hidden_BTH = model.base_model(input_ids=layout.input_ids, position_ids=layout.position_BT, use_cache=False)[0]
    layout.finish()
    return hidden_BTH


class PrefixCache:
    """The rows that a model has read lately, to be found by what they begin with."""

    def __init__(self) -> None:
        self._rows: list[CachedRow] = []

    def longest(self, ids: Ids) -> tuple[CachedRow | None, int]:
        """The row that shares the longest prefix with some ids, and how long that is."""
        # In lexicographic order the best match stands right before or behind.
        place = bisect_left(self._rows, ids, key=lambda row: row.ids)
        best, length = None, 0
        for row in self._rows[max(place - 1, 0) : place + 1]:
            shared = num_shared(row.ids, ids)
            if shared > length:
                best, length = row, shared
        return best, length

    def bins(self) -> list[Bin]:
        """The bins of the rows."""
        return list({id(row.bin): row.bin for row in self._rows}.values())

    def replace(self, rows: Sequence[CachedRow]) -> None:
        """Forget all rows but these."""
        self._rows = sorted(rows, key=lambda row: row.ids)
