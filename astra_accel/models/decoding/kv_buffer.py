"""Room for the keys and values of rows of tokens, from one's own forwards or other rows."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch

from astra_accel.models.memory import uploaded


class Source(NamedTuple):
    """Where the first states of a row come from.

    Attributes:
        slots: hold them.
        row: of those.
        length: how many tokens.
    """

    slots: Slots
    row: int
    length: int


class Paths(NamedTuple):
    """The nodes of a packed forward that rows take the states of, on the device of the states.

    Attributes:
        rows_R: the rows.
        nodes_RL: the nodes of each row's tokens, filled up with 0.
    """

    rows_R: torch.Tensor
    nodes_RL: torch.Tensor

    @classmethod
    def of(cls, nodes_of: Mapping[int, list[int]], device: torch.device) -> Paths:
        """From the nodes of each row; uploaded once for all layers."""
        longest = max(map(len, nodes_of.values()), default=0)
        filled = [[*path, *[0] * (longest - len(path))] for path in nodes_of.values()]
        return cls(uploaded(list(nodes_of), device), uploaded(filled, device))


@dataclass
class Slots:
    """Keys and values of some rows, ``[rows, heads, slots, dim]`` a layer, written in place.

    Attributes:
        num_rows: how many.
        num_slots: tokens that a row may come to.
        buffers: keys and values by layer; None where they were given up.
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
        """Let rows and as many others change places."""
        buffers = [buffer for both in self.buffers.values() for buffer in both or ()]
        if rows and buffers:
            to_R = uploaded([*rows, *others], buffers[0].device)
            from_R = uploaded([*others, *rows], buffers[0].device)
            for buffer in buffers:
                buffer[to_R] = buffer[from_R]

    def write(self, layer: int, key_HND: torch.Tensor, value_HND: torch.Tensor, paths: Paths) -> None:
        """Take a layer's states of rows from a packed forward."""
        if paths.nodes_RL.numel() == 0:
            return
        longest = paths.nodes_RL.shape[1]
        for buffer, states_HND in zip(self.layer(layer, key_HND), (key_HND, value_HND), strict=True):
            buffer[paths.rows_R, :, :longest] = states_HND[:, paths.nodes_RL].transpose(0, 1)

    def copy(self, sources: Mapping[int, Source], last_use: Iterable[Slots] = ()) -> None:
        """Take the first states of rows from elsewhere.

        Slots in ``last_use`` are emptied on the way, a layer at a time, so that no two copies are held at once.
        """
        given_up = set(map(id, last_use))
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
