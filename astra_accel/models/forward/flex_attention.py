"""A pack's attention by FlexAttention, which skips the blocks of scores that no path needs (CUDA).

https://pytorch.org/docs/stable/nn.attention.flex_attention.html

The compiler sees the same call again and again: nodes are padded to a multiple of :data:`STEP`, only their number
differs between calls of a kernel, and windows are data. A kernel that the compiler gives up on is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from astra_accel.models.forward.attention import Rule
from astra_accel.models.forward.capabilities import supports
from astra_accel.models.forward.flex_check import check_layout
from astra_accel.models.forward.prefix_tree import Pack
from astra_accel.models.forward.tree_attention import TreeLayout

BLOCK = 128
"""Nodes on each side of a block of scores, which a kernel computes or skips as a whole."""
STEP = 2 * BLOCK
"""The number of nodes is a multiple of it: a kernel compiled for a single block would not work for several."""
COMPILED = {"cuda"}
"""Device types with a compiled kernel; only a compiled one skips blocks. On a CPU there is none with gradients."""


class FlexLayout:
    """A pack whose nodes see themselves and their ancestors; arguments and attributes as in ``TreeLayout``."""

    def __init__(self, pack: Pack, device: torch.device, keep: bool = False) -> None:
        self._tree = _PaddedTree.from_pack(pack)
        self._num_nodes = len(pack.parents)
        self._device = device
        self._masks: dict[int | None, BlockMask] = {}
        self._keep = keep
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """See :class:`~astra_accel.models.forward.attention.Layout`; the batch is the one pack.

        Raises:
            FailOnRecompileLimitHit: the compiler recompiled a kernel too often.
            RuntimeError: the compiler was switched off meanwhile.
        """
        if self._keep:
            self.kept[layer] = key_BHTD[0], value_BHTD[0]
        if rule.window not in self._masks:
            self._masks[rule.window] = self._tree.block_mask(rule.window, self._device)
        # Under autocast, rotary positions leave queries and keys in a different type from values.
        query, key, value = (self._padded(each.to(value_BHTD.dtype)) for each in (query_BHTD, key_BHTD, value_BHTD))
        with torch.autocast(self._device.type, enabled=False):
            output_BHTD = _kernel(_Call.from_states((query, key, value), rule))(
                query, key, value, self._masks[rule.window]
            )
        return output_BHTD[:, :, : self._num_nodes].transpose(1, 2)

    def _padded(self, states_BHTD: torch.Tensor) -> torch.Tensor:
        """Pad states and make them contiguous, since kernels are compiled for one memory order."""
        missing = self._tree.num_places - self._num_nodes
        return pad(states_BHTD, (0, 0, 0, missing)).contiguous()


def tree_layout(model: Any, pack: Pack, keep: bool = False) -> TreeLayout | FlexLayout:
    """The fastest layout of a pack on the model's device that gives what ``TreeLayout`` gives."""
    device = model.device.type
    if device in COMPILED:
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
        gradients = torch.is_grad_enabled()
        feature = f"FlexAttention in {str(dtype).removeprefix('torch.')}, {'with' if gradients else 'no'} gradients"
        if supports(
            model, feature, lambda one: check_layout(FlexLayout, one, dtype, gradients), "attention goes block by block"
        ):
            return FlexLayout(pack, model.device, keep)
    return TreeLayout(pack, model.device, keep)


class _PaddedTree(NamedTuple):
    """The nodes of a pack, followed by places that see only themselves and that no other place sees.

    Attributes:
        position_N: depths, 0 at places without a node.
        end_N: for each place, where its subtree ends.
    """

    position_N: np.ndarray
    end_N: np.ndarray

    @classmethod
    def from_pack(cls, pack: Pack) -> _PaddedTree:
        """The nodes of a pack, padded to a multiple of :data:`STEP`."""
        num_nodes = len(pack.parents)
        num_places = -(-num_nodes // STEP) * STEP
        return cls(
            np.array([*pack.position_ids, *[0] * (num_places - num_nodes)], dtype=np.int32),
            np.array([*pack.subtree_end, *range(num_nodes + 1, num_places + 1)], dtype=np.int32),
        )

    @property
    def num_places(self) -> int:
        """The number of nodes, padding included."""
        return len(self.end_N)

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """Which node sees which, and which blocks are not empty."""
        lowest_N = np.zeros_like(self.position_N) if window is None else np.maximum(self.position_N - window + 1, 0)
        some_QK, all_QK = self._blocks(lowest_N)
        position_N, end_N, lowest_N = (
            torch.tensor(values, device=device) for values in (self.position_N, self.end_N, lowest_N)
        )

        def sees(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return (key <= query) & (query < end_N[key]) & (position_N[key] >= lowest_N[query])

        return BlockMask.from_kv_blocks(
            *_ordered(some_QK & ~all_QK, device), *_ordered(all_QK, device), BLOCK_SIZE=BLOCK, mask_mod=sees
        )

    def _blocks(self, lowest_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of queries and keys where some query may see some key, and where surely all queries see all keys.

        torch's ``create_block_mask`` would look at all pairs of nodes. Here a key is compared with the first and last
        query of a block; with a window, some blocks may be computed in which no query sees any key.
        """
        key_1N, end_1N, position_1N = np.arange(self.num_places)[None], self.end_N[None], self.position_N[None]
        first_Q1 = np.arange(0, self.num_places, BLOCK)[:, None]
        last_Q1 = first_Q1 + BLOCK - 1
        lowest_QB = lowest_N.reshape(-1, BLOCK)
        some_QN = (key_1N <= last_Q1) & (end_1N > first_Q1) & (position_1N >= lowest_QB.min(1, keepdims=True))
        all_QN = (key_1N <= first_Q1) & (end_1N > last_Q1) & (position_1N >= lowest_QB.max(1, keepdims=True))
        shape = len(first_Q1), -1, BLOCK
        return some_QN.reshape(shape).any(-1), all_QN.reshape(shape).all(-1)


def _ordered(chosen_QK: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For each block of queries, the number of chosen key blocks, and all key blocks with these first."""
    order_QK = np.argsort(~chosen_QK, axis=1, kind="stable").astype(np.int32)
    counts_Q = chosen_QK.sum(1, dtype=np.int32)
    return torch.tensor(counts_Q[None, None], device=device), torch.tensor(order_QK[None, None], device=device)


class _Call(NamedTuple):
    """All that a kernel is compiled for, except the number of nodes. A model's layers nearly always agree in it."""

    device: str
    dtype: torch.dtype
    heads: tuple[int, ...]
    dims: tuple[int, ...]
    scale: float | None
    softcap: float | None
    gradients: tuple[bool, ...]

    @classmethod
    def from_states(cls, states: Sequence[torch.Tensor], rule: Rule) -> _Call:
        """The call with these queries, keys and values."""
        query = states[0]
        return cls(
            query.device.type,
            query.dtype,
            tuple(each.shape[1] for each in states),
            tuple(each.shape[3] for each in states),
            rule.scale,
            rule.softcap,
            (torch.is_grad_enabled(), *(each.requires_grad for each in states)),
        )


def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def score_mod(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, BlockMask], torch.Tensor]

_numbers = count()


@cache
def _kernel(call: _Call) -> Kernel:
    """FlexAttention for one kind of call. ``fullgraph`` raises an error where code would stay uncompiled."""
    compiled = call.device in COMPILED
    score_mod = None if call.softcap is None else _capped(call.softcap)

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask) -> torch.Tensor:
        if compiled and not torch.compiler.is_compiling():
            raise RuntimeError("torch.compile is switched off, and FlexAttention without it makes all scores")
        return flex_attention(
            query,
            key,
            value,
            score_mod=score_mod,
            block_mask=mask,
            scale=call.scale,
            enable_gqa=call.heads[0] != call.heads[1],
        )

    if not compiled:
        return attention
    # The compiler counts compilations and remembers sizes by the function's code and name, so each kernel has its own.
    code = attention.__code__.replace(co_name=f"flex_kernel_{next(_numbers)}")
    own = FunctionType(code, attention.__globals__, code.co_name, None, attention.__closure__)
    return torch.compile(own, fullgraph=True)
