"""Attention of the nodes of a pack, each of which sees itself and its ancestors.

A dense mask over ``N`` nodes costs ``N x N`` scores. Here the nodes are split into blocks of one path each, whose
queries attend only to the keys of that path, so the total costs about what the attention of the distinct tokens must.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from astra_accel.models.forward.attention import Rule, added_mask
from astra_accel.models.forward.prefix_tree import Pack, segment_sum

BLOCK_QUERIES = 32
"""The most queries of a block. A choice that was not measured."""
KEY_STEP = 128
"""Blocks whose depths are equal in units of this many keys are computed together. A choice that was not measured."""
MAX_SCORES = 2**20
"""The most scores of a head that are made at once, which bounds memory. A choice that was not measured."""


class TreeLayout:
    """A pack split into blocks.

    Args:
        pack: the nodes.
        device: the model's device.
        keep: whether to store the keys and values of every layer.

    Attributes:
        kept: keys and values by layer, ``[heads, nodes, dim]``.
    """

    def __init__(self, pack: Pack, device: torch.device, keep: bool = False) -> None:
        self._sets = [_Blocks.from_pack(pack, blocks, device) for blocks in _block_sets(pack)]
        self._keep = keep
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """See :class:`~astra_accel.models.forward.attention.Layout`; the batch is the one pack."""
        if self._keep:
            self.kept[layer] = key_BHTD[0], value_BHTD[0]
        # Under autocast, rotary positions leave queries and keys in a different type from values.
        states_HND = (states_BHTD[0].to(value_BHTD.dtype) for states_BHTD in (query_BHTD, key_BHTD, value_BHTD))
        with torch.autocast(value_BHTD.device.type, enabled=False):
            return _BlockAttention.apply(*states_HND, self._sets, rule).transpose(0, 1)[None]


@dataclass
class _Blocks:
    """Blocks of consecutive nodes of one path, and the path from the first token to each block's end.

    Attributes:
        nodes_M: the nodes of all blocks.
        place_M: where they are in the blocks, ``blocks * queries`` places, some of which stay empty.
        position_SQ: the depth at each place.
        path_SK: the nodes of each path, by depth; entries after its end are masked.
        place_P: the places of ``path_SK``, flattened, that are not after an end.
        masks: the masks made so far, by window, number of query heads per key head, and dtype.
    """

    nodes_M: torch.Tensor
    place_M: torch.Tensor
    position_SQ: torch.Tensor
    path_SK: torch.Tensor
    place_P: torch.Tensor
    masks: dict[Any, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def from_pack(cls, pack: Pack, blocks: Sequence[range], device: torch.device) -> _Blocks:
        """The blocks of a pack on a device."""
        num_queries = max(map(len, blocks))
        paths = [pack.path_to(block[-1]) for block in blocks]
        num_keys = max(map(len, paths))
        return cls(
            nodes_M=torch.tensor([node for block in blocks for node in block], device=device),
            place_M=torch.tensor(
                [number * num_queries + step for number, block in enumerate(blocks) for step in range(len(block))],
                device=device,
            ),
            # An empty place sees what the last node sees: the softmax of nothing would be NaN.
            position_SQ=torch.tensor(
                [
                    [pack.position_ids[min(block[0] + step, block[-1])] for step in range(num_queries)]
                    for block in blocks
                ],
                device=device,
            ),
            path_SK=torch.tensor([[*path, *[0] * (num_keys - len(path))] for path in paths], device=device),
            place_P=torch.tensor(
                [number * num_keys + depth for number, path in enumerate(paths) for depth in range(len(path))],
                device=device,
            ),
        )

    def to_blocks(self, states_HND: torch.Tensor, num_groups: int) -> torch.Tensor:
        """States of the nodes as ``[groups, blocks, heads of a group x queries, dim]``, 0 at empty places."""
        num_heads, _, dim = states_HND.shape
        grid = states_HND.new_zeros(num_heads, self.position_SQ.numel(), dim)
        grid[:, self.place_M] = states_HND[:, self.nodes_M]
        return grid.view(num_groups, -1, *self.position_SQ.shape, dim).transpose(1, 2).flatten(2, 3)

    def from_blocks(self, grid_GSRD: torch.Tensor, states_HND: torch.Tensor) -> None:
        """Write the nodes' states, the inverse of :meth:`to_blocks`."""
        by_head = grid_GSRD.unflatten(2, (-1, self.position_SQ.shape[1])).transpose(1, 2)
        places = by_head.reshape(states_HND.shape[0], -1, states_HND.shape[2])
        states_HND[:, self.nodes_M] = places[:, self.place_M]

    def along_paths(self, states_GND: torch.Tensor) -> torch.Tensor:
        """States of the nodes along each path, ``[groups, blocks, keys, dim]``."""
        return states_GND[:, self.path_SK]

    def add_along(self, total_NX: torch.Tensor, part_GSKD: torch.Tensor) -> None:
        """Add states along paths to the totals of their nodes, which several paths share; in the total's type."""
        rows_PX = part_GSKD.flatten(1, 2).transpose(0, 1)[self.place_P].flatten(1).to(total_NX.dtype)
        total_NX += segment_sum(rows_PX, self.path_SK.flatten()[self.place_P], len(total_NX))

    def mask(self, window: int | None, share: int, dtype: torch.dtype) -> torch.Tensor:
        """``[blocks, heads of a group x queries, keys]``, made once per pack."""
        key = window, share, dtype
        if key not in self.masks:
            mask_SQK = added_mask(self.position_SQ, self.path_SK.shape[1], window, dtype)
            self.masks[key] = mask_SQK.repeat(1, share, 1)
        return self.masks[key]


class _BlockAttention(torch.autograd.Function):
    """``softmax(scores) @ values`` block by block; keeps no scores for the backward pass, which recomputes them.

    With ``x = scale q.k``, ``s = x`` or ``softcap tanh(x / softcap)``, ``p = softmax(s)`` and ``o = p v``: the
    gradient of ``p`` is ``dp = do.v``, that of ``s`` is ``ds = p (dp - do.o)``, and that of ``x`` is ``ds`` or, with a
    soft cap, ``ds (1 - (s / softcap)^2)``.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        query_HND: torch.Tensor,
        key_GND: torch.Tensor,
        value_GND: torch.Tensor,
        sets: Sequence[_Blocks],
        rule: Rule,
    ) -> torch.Tensor:
        output_HND = _like_rows(query_HND)
        for blocks in sets:
            query_GSRD = blocks.to_blocks(query_HND, len(key_GND)) * _scale(rule, query_HND)
            probs_GSRK, _ = _probs(blocks, query_GSRD, blocks.along_paths(key_GND), rule)
            blocks.from_blocks(probs_GSRK @ blocks.along_paths(value_GND), output_HND)
        ctx.save_for_backward(query_HND, key_GND, value_GND, output_HND)
        ctx.sets, ctx.rule = sets, rule
        return output_HND

    @staticmethod
    def backward(ctx: Any, gradient_HND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_HND, key_GND, value_GND, output_HND = ctx.saved_tensors
        scale = _scale(ctx.rule, query_HND)
        through_HN1 = (gradient_HND * output_HND).sum(-1, keepdim=True)
        to_query_HND = _like_rows(query_HND)
        to_key_NX, to_value_NX = _totals(key_GND), _totals(value_GND)
        for blocks in ctx.sets:
            query_GSRD, gradient_GSRD, through_GSR1 = (
                blocks.to_blocks(states_HND, len(key_GND)) for states_HND in (query_HND, gradient_HND, through_HN1)
            )
            query_GSRD *= scale
            key_GSKD = blocks.along_paths(key_GND)
            probs_GSRK, slope_GSRK = _probs(blocks, query_GSRD, key_GSKD, ctx.rule)
            blocks.add_along(to_value_NX, probs_GSRK.transpose(-1, -2) @ gradient_GSRD)
            scores_GSRK = gradient_GSRD @ blocks.along_paths(value_GND).transpose(-1, -2)
            scores_GSRK.sub_(through_GSR1).mul_(probs_GSRK)
            if slope_GSRK is not None:
                scores_GSRK *= slope_GSRK
            blocks.from_blocks((scores_GSRK @ key_GSKD) * scale, to_query_HND)
            blocks.add_along(to_key_NX, scores_GSRK.transpose(-1, -2) @ query_GSRD)
        return to_query_HND, _by_group(to_key_NX, key_GND), _by_group(to_value_NX, value_GND), None, None


def _probs(
    blocks: _Blocks, query_GSRD: torch.Tensor, key_GSKD: torch.Tensor, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention probabilities of queries that are already scaled, and the slope of a soft cap."""
    share = query_GSRD.shape[2] // blocks.position_SQ.shape[1]
    scores_GSRK = query_GSRD @ key_GSKD.transpose(-1, -2)
    slope_GSRK = None
    if rule.softcap is not None:
        capped_GSRK = torch.tanh(scores_GSRK / rule.softcap)
        scores_GSRK, slope_GSRK = rule.softcap * capped_GSRK, 1 - capped_GSRK**2
    scores_GSRK += blocks.mask(rule.window, share, scores_GSRK.dtype)
    return scores_GSRK.softmax(-1, dtype=torch.float32).to(query_GSRD.dtype), slope_GSRK


def _totals(states_GND: torch.Tensor) -> torch.Tensor:
    """Zeros ``[nodes, groups x dim]`` to add up in: sums over many paths would lose much in 16 bits."""
    num_groups, num_nodes, dim = states_GND.shape
    dtype = torch.promote_types(states_GND.dtype, torch.float32)
    return torch.zeros(num_nodes, num_groups * dim, dtype=dtype, device=states_GND.device)


def _by_group(total_NX: torch.Tensor, like_GND: torch.Tensor) -> torch.Tensor:
    """Totals as ``[groups, nodes, dim]``, in the type of ``like_GND``."""
    return total_NX.unflatten(1, (len(like_GND), -1)).transpose(0, 1).to(like_GND.dtype)


def _like_rows(states_HND: torch.Tensor) -> torch.Tensor:
    """Room for states of the same shape, stored node by node, as the next layer reads them."""
    num_heads, num_nodes, dim = states_HND.shape
    return states_HND.new_empty(num_nodes, num_heads, dim).transpose(0, 1)


def _scale(rule: Rule, query: torch.Tensor) -> float:
    return query.shape[-1] ** -0.5 if rule.scale is None else rule.scale


def _block_sets(pack: Pack) -> Iterator[list[range]]:
    """The blocks of a pack, those of similar depth together, up to :data:`MAX_SCORES` scores each time."""
    starts = [node for node, parent in enumerate(pack.parents) if node == 0 or parent != node - 1]
    by_depth: dict[int, list[range]] = {}
    for start, end in zip(starts, [*starts[1:], len(pack.parents)], strict=True):
        for at in range(start, end, BLOCK_QUERIES):
            block = range(at, min(at + BLOCK_QUERIES, end))
            by_depth.setdefault(pack.position_ids[block[-1]] // KEY_STEP, []).append(block)
    for depth, blocks in by_depth.items():
        size = max(1, MAX_SCORES // (BLOCK_QUERIES * KEY_STEP * (depth + 1)))
        for at in range(0, len(blocks), size):
            yield blocks[at : at + size]
