"""Keys and values of conversations that grow, fork, and end one by one.

A prefix that rows share is stored once, however many they are: most of what the conversations of a prompt read is that
prompt, and a decoding step costs about as much as it reads. A row's own tokens after it have their own slots, the token
at position ``p`` in slot ``p - prefix``, whatever else is in the batch: pieces of different lengths leave no gaps, a
row can be cut back to any prefix, and the mask follows from positions alone.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf, prod
from typing import NamedTuple

import torch

from astra_accel.models.forward.prefix_tree import Ids, num_shared
from astra_accel.models.memory import uploaded


class Source(NamedTuple):
    """Where the first states of a row come from.

    Attributes:
        slots: the buffer that holds them.
        row: the row in that buffer.
        length: the number of tokens.
    """

    slots: KVBuffer
    row: int
    length: int


class Paths(NamedTuple):
    """The nodes of a packed forward whose states rows take, on the device of the states.

    Attributes:
        rows_R: the rows.
        nodes_RL: the nodes of each row's tokens, padded with 0.
    """

    rows_R: torch.Tensor
    nodes_RL: torch.Tensor

    @classmethod
    def from_nodes(cls, nodes_of: Mapping[int, list[int]], device: torch.device) -> Paths:
        """From the nodes of each row; uploaded once for all layers."""
        longest = max(map(len, nodes_of.values()), default=0)
        filled = [[*path, *[0] * (longest - len(path))] for path in nodes_of.values()]
        return cls(uploaded(list(nodes_of), device), uploaded(filled, device))


@dataclass
class KVBuffer:
    """Keys and values of some rows, ``[rows, heads, slots, dim]`` per layer, written in place.

    Attributes:
        num_rows: the number of rows.
        num_slots: the most tokens of a row.
        buffers: keys and values by layer; None if they were given up.
    """

    num_rows: int
    num_slots: int
    buffers: dict[int, tuple[torch.Tensor, torch.Tensor] | None] = field(default_factory=dict)

    def layer(self, index: int, like_HMD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, with heads, dtype and device of some states ``[heads, any, dim]``."""
        found = self.buffers.get(index)
        if found is None:
            num_heads, _, dim = like_HMD.shape
            shape = (self.num_rows, num_heads, self.num_slots, dim)
            found = self.buffers[index] = _zeros(shape, like_HMD), _zeros(shape, like_HMD)
        return found

    def swap(self, rows: Sequence[int], others: Sequence[int]) -> None:
        """Swap rows with as many others."""
        buffers = [buffer for both in self.buffers.values() for buffer in both or ()]
        if rows and buffers:
            to_R = uploaded([*rows, *others], buffers[0].device)
            from_R = uploaded([*others, *rows], buffers[0].device)
            for buffer in buffers:
                buffer[to_R] = buffer[from_R]

    def write(self, layer: int, key_HND: torch.Tensor, value_HND: torch.Tensor, paths: Paths) -> None:
        """Write a layer's states of rows from a packed forward."""
        if paths.nodes_RL.numel() == 0:
            return
        longest = paths.nodes_RL.shape[1]
        for buffer, states_HND in zip(self.layer(layer, key_HND), (key_HND, value_HND), strict=True):
            buffer[paths.rows_R, :, :longest] = states_HND[:, paths.nodes_RL].transpose(0, 1)

    def copy(self, sources: Mapping[int, Source], release: Iterable[KVBuffer] = ()) -> None:
        """Copy the first states of rows from other buffers.

        Buffers in ``release`` are emptied on the way, one layer at a time, so that no two copies are held at once.
        """
        given_up = set(map(id, release))
        by_slots: dict[int, list[tuple[int, Source]]] = {}
        for row, source in sources.items():
            by_slots.setdefault(id(source.slots), []).append((row, source))
        for moves in by_slots.values():
            other = moves[0][1].slots
            for layer, both in other.buffers.items():
                assert both is not None, "slots that were given up"
                for buffer, states_RHKD in zip(self.layer(layer, both[0][0]), both, strict=True):
                    for row, (_, theirs, length) in moves:
                        buffer[row, :, :length] = states_RHKD[theirs, :, :length]
                if id(other) in given_up:
                    other.buffers[layer] = None


def _zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, since unwritten slots are masked, but 0 x NaN would be NaN.

    On a CPU they have their own pages: a page that is never written takes no memory, and the system gets all of them
    back at once, where a memory allocator would keep the holes that a layer's buffers leave.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, max(1, prod(shape) * like.element_size()))
    if hasattr(pages, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: smaller ones work too, slower
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype, count=prod(shape)).view(shape)


BATCH_PRICE = {"cpu": 2048}
"""The cost of another batch in every layer of a step, in tokens of the cache that could be read instead.

Measured on a CPU; the figures were not kept.
"""


def batch_price(device: torch.device) -> float:
    """The cost of another batch on a device.

    Only a CPU has more than one batch. Another needs a dozen kernels in each layer, each of which takes some 5 us to
    launch; in that time a GPU reads tens of thousands of tokens of a layer's cache (4 kB each at 8B, 3 TB/s), more than
    rows of different length waste. That is arithmetic, not measured on a GPU yet.
    """
    return BATCH_PRICE.get(device.type, inf)


@dataclass(frozen=True)
class SharedPrefixes:
    """The prefixes of rows, each stored once for all rows that share it.

    Attributes:
        ids: the tokens of each prefix, none twice.
        slots: a row for each prefix, its token at position ``p`` in slot ``p``.
    """

    ids: tuple[Ids, ...]
    slots: KVBuffer

    @classmethod
    def from_ids(cls, prefixes: Iterable[Ids]) -> SharedPrefixes:
        """Room for the distinct ones of some prefixes."""
        ids = tuple(dict.fromkeys(prefixes))
        return cls(ids, KVBuffer(len(ids), max(map(len, ids))))


@dataclass
class CacheBatch:
    """Rows of similar length that go through forwards together.

    Attributes:
        ids: the tokens that each row has read.
        prefixes: the prefixes of the rows.
        prefix_of: the index of each row's prefix.
        num_slots: the most tokens of a row after its prefix.
        num_active: how many rows take part in forwards, the first ones; those that have ended are moved after them.
        slots: the states of the tokens after the prefixes.
    """

    ids: list[list[int]]
    prefixes: SharedPrefixes
    prefix_of: list[int]
    num_slots: int
    num_active: int = field(init=False)
    slots: KVBuffer = field(init=False)

    def __post_init__(self) -> None:
        self.num_active = len(self.ids)
        self.slots = KVBuffer(len(self.ids), self.num_slots)

    def rows(self) -> list[CachedRow]:
        """All rows, including those that have ended."""
        return [CachedRow(self, row, tuple(ids)) for row, ids in enumerate(self.ids)]

    def prefix(self, row: int) -> Ids:
        """The prefix of a row."""
        return self.prefixes.ids[self.prefix_of[row]]

    def num_own(self, row: int) -> int:
        """The number of tokens that a row has read after its prefix."""
        return len(self.ids[row]) - len(self.prefix(row))

    def replace_last(self, row: int, count: int, ids: Sequence[int]) -> None:
        """Put ids in the place of a row's last ``count`` tokens; with fewer ids the row is cut."""
        self.ids[row][len(self.ids[row]) - count :] = ids

    def end(self, places: Sequence[int]) -> list[int]:
        """Remove some active rows from further forwards; returns the old place of each row that stays active."""
        ended = set(places)
        num_staying = self.num_active - len(ended)
        holes = sorted(place for place in ended if place < num_staying)
        movers = [place for place in range(num_staying, self.num_active) if place not in ended]
        order = list(range(num_staying))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
            self.ids[hole], self.ids[mover] = self.ids[mover], self.ids[hole]
            self.prefix_of[hole], self.prefix_of[mover] = self.prefix_of[mover], self.prefix_of[hole]
        self.slots.swap(holes, movers)
        self.num_active = num_staying
        return order

    def copy(self, sources: Sequence[CachedRow], release: Sequence[CacheBatch]) -> None:
        """Copy the states of what the first rows have read from one source row each, which begins with the same tokens.

        Batches in ``release`` lose what they hold after their prefixes.
        """
        own = {row: Source(source.batch.slots, source.row, self.num_own(row)) for row, source in enumerate(sources)}
        self.slots.copy(
            {row: source for row, source in own.items() if source.length > 0}, [used.slots for used in release]
        )
        self.prefixes.slots.copy(
            {
                self.prefix_of[row]: Source(
                    source.batch.prefixes.slots, source.batch.prefix_of[source.row], len(self.prefix(row))
                )
                for row, source in enumerate(sources)
                if source.batch.prefixes is not self.prefixes
            }
        )


@dataclass(frozen=True)
class CachedRow:
    """A row of a batch, and what it has read."""

    batch: CacheBatch
    row: int
    ids: Ids

    @property
    def prefix(self) -> Ids:
        """The row's prefix."""
        return self.batch.prefix(self.row)


class PrefixCache:
    """The rows that a model has read recently, looked up by prefix.

    If the model's frequencies depend on the length (:mod:`~astra_accel.models.decoding.length_regimes`), rows of each
    regime have their own cache, since their keys differ.
    """

    def __init__(self) -> None:
        self._rows: list[CachedRow] = []
        self._longer: dict[int, PrefixCache] = {}

    def of_regime(self, regime: int) -> PrefixCache:
        """The rows of a regime; this one holds those of the first."""
        return self if regime == 0 else self._longer.get(regime, PrefixCache())

    def longest(self, ids: Ids) -> tuple[CachedRow | None, int]:
        """The row that shares the longest prefix with some ids, and the length of that prefix."""
        # In lexicographic order the best match is right before or after.
        place = bisect_left(self._rows, ids, key=lambda row: row.ids)
        best, length = None, 0
        for row in self._rows[max(place - 1, 0) : place + 1]:
            shared = num_shared(row.ids, ids)
            if shared > length:
                best, length = row, shared
        return best, length

    def batches(self) -> list[CacheBatch]:
        """The batches of the rows."""
        return list({id(row.batch): row.batch for row in self._rows}.values())

    def replace(self, rows: Sequence[CachedRow]) -> None:
        """Forget all rows but these."""
        self._rows = sorted(rows, key=lambda row: row.ids)
        self._longer = {}

    def replace_regimes(self, rows_of: Mapping[int, Sequence[CachedRow]]) -> None:
        """Forget all rows but these, by regime."""
        self.replace(rows_of.get(0, []))
        for regime, rows in rows_of.items():
            if regime != 0:
                self._longer[regime] = PrefixCache()
                self._longer[regime].replace(rows)
