"""Keys and values of conversations that grow, fork, and end one by one.

What rows begin with is held once however many they are: most of what the conversations of a prompt read is that
prompt, and a step of decoding costs about what it reads. A row's own tokens stand behind it in slots of their own, its
token at position ``p`` in slot ``p - prefix``, whatever else is in the batch: pieces of different lengths leave no
gaps, a row can be cut back to any prefix, and who sees whom follows from positions alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import torch

from astra_accel.models.decoding.kv_buffer import Slots, Source
from astra_accel.models.forward.prefix_tree import num_shared

Ids = tuple[int, ...]

BIN_PRICE = {"cpu": 2048}
"""What another bin costs in every layer of a step, in tokens of the cache that could be read instead (measured)."""


def bin_price(device: torch.device) -> float:
    """What another bin costs on a device.

    Elsewhere than on a CPU there is one. Another has a dozen kernels in each layer, each of which takes some 5 us to
    launch; in that time a GPU reads tens of thousands of tokens of a layer's cache (4 kB each at 8B, 3 TB/s), more than
    rows of unlike length waste. That is arithmetic: no GPU has run it yet.
    """
    return BIN_PRICE.get(device.type, inf)


@dataclass(frozen=True)
class SharedPrefixes:
    """What rows begin with, once for all that do.

    Attributes:
        ids: the tokens of each, none twice.
        slots: a row for each, its token at position ``p`` in slot ``p``.
    """

    ids: tuple[Ids, ...]
    slots: Slots

    @classmethod
    def of(cls, prefixes: Iterable[Ids]) -> SharedPrefixes:
        """Room for the distinct ones of some prefixes."""
        ids = tuple(dict.fromkeys(prefixes))
        return cls(ids, Slots(len(ids), max(map(len, ids))))


@dataclass
class Bin:
    """Rows of like length that go through forwards together.

    Attributes:
        ids: the tokens that each row has read.
        prefixes: what the rows begin with.
        prefix_of: which of those each row does.
        num_slots: tokens that a row may come to behind its prefix.
        num_active: the first rows take part in forwards; those that have ended are moved behind them and stay.
        slots: the states of what stands behind the prefixes.
    """

    ids: list[list[int]]
    prefixes: SharedPrefixes
    prefix_of: list[int]
    num_slots: int
    num_active: int = field(init=False)
    slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self.num_active = len(self.ids)
        self.slots = Slots(len(self.ids), self.num_slots)

    def rows(self) -> list[CachedRow]:
        """All rows, those that have ended too."""
        return [CachedRow(self, row, tuple(ids)) for row, ids in enumerate(self.ids)]

    def prefix(self, row: int) -> Ids:
        """What a row begins with."""
        return self.prefixes.ids[self.prefix_of[row]]

    def num_own(self, row: int) -> int:
        """Tokens that a row has read behind its prefix."""
        return len(self.ids[row]) - len(self.prefix(row))

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
            self.prefix_of[hole], self.prefix_of[mover] = self.prefix_of[mover], self.prefix_of[hole]
        self.slots.swap(holes, movers)
        self.num_active = num_staying
        return order

    def copy(self, sources: Sequence[CachedRow], last_use: Sequence[Bin]) -> None:
        """Take the states of what the first rows have read from a row each that begins with it.

        What bins in ``last_use`` hold behind their prefixes is gone afterwards.
        """
        own = {row: Source(source.bin.slots, source.row, self.num_own(row)) for row, source in enumerate(sources)}
        self.slots.copy(
            {row: source for row, source in own.items() if source.length > 0}, [used.slots for used in last_use]
        )
        self.prefixes.slots.copy(
            {
                self.prefix_of[row]: Source(
                    source.bin.prefixes.slots, source.bin.prefix_of[source.row], len(self.prefix(row))
                )
                for row, source in enumerate(sources)
                if source.bin.prefixes is not self.prefixes
            }
        )


@dataclass(frozen=True)
class CachedRow:
    """A row of a bin, and what it has read."""

    bin: Bin
    row: int
    ids: Ids

    @property
    def prefix(self) -> Ids:
        """What it begins with."""
        return self.bin.prefix(self.row)


class PrefixCache:
    """The rows that a model has read lately, to be found by what they begin with.

    Where its frequencies depend on the length (:mod:`~astra_accel.models.decoding.length_regimes`), rows of each regime
    lie in a cache of their own, since their keys differ.
    """

    def __init__(self) -> None:
        self._rows: list[CachedRow] = []
        self._longer: dict[int, PrefixCache] = {}

    def of_regime(self, regime: int) -> PrefixCache:
        """The rows of a regime; this one holds those of the first."""
        return self if regime == 0 else self._longer.get(regime, PrefixCache())

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
        self._longer = {}

    def replace_regimes(self, rows_of: Mapping[int, Sequence[CachedRow]]) -> None:
        """Forget all rows but these, by regime."""
        self.replace(rows_of.get(0, []))
        for regime, rows in rows_of.items():
            if regime != 0:
                self._longer[regime] = PrefixCache()
                self._longer[regime].replace(rows)
