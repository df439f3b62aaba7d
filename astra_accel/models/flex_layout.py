"""A pack's attention by FlexAttention, which leaves out the blocks of scores that no path needs (CUDA).

https://pytorch.org/docs/stable/nn.attention.flex_attention.html
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from astra_accel.models.attention import Layout, Rule
from astra_accel.models.prefix_tree import Pack, pack_sequences
from astra_accel.models.support import check_sequences, supports
from astra_accel.models.tree_attention import TreeLayout

# Of outputs and gradients of order 1: matrix products in TensorFloat-32 or 16 bits are that far apart.
TOLERANCE = 2e-2


class FlexLayout:
    """A pack whose nodes see themselves and their ancestors; arguments and attributes as ``TreeLayout``'s."""

    def __init__(self, pack: Pack, device: torch.device, keep: bool = False) -> None:
        self._position_N = torch.tensor(pack.position_ids, device=device)
        self._subtree_end_N = torch.tensor(pack.subtree_end, device=device)
        self._masks: dict[int | None, BlockMask] = {}
        self._keep = keep
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, layer: int, query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """See :class:`~astra_accel.models.attention.Layout`; the batch is the one pack."""
        if self._keep:
            self.kept[layer] = key_BHTD[0], value_BHTD[0]

        output_BHTD = _kernel(query_BHTD.device.type)(
            query_BHTD,
            key_BHTD,
            value_BHTD,
            score_mod=None if rule.softcap is None else partial(_capped, softcap=rule.softcap),
            block_mask=self._mask(rule.window),
            scale=rule.scale,
            enable_gqa=query_BHTD.shape[1] != key_BHTD.shape[1],
        )
        return output_BHTD.transpose(1, 2)

    def _mask(self, window: int | None) -> BlockMask:
        if window not in self._masks:
            position_N, subtree_end_N = self._position_N, self._subtree_end_N

            def sees(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
                ancestor = (key <= query) & (query < subtree_end_N[key])
                return ancestor if window is None else ancestor & (position_N[query] - position_N[key] < window)

            num_nodes = len(position_N)
            self._masks[window] = create_block_mask(sees, None, None, num_nodes, num_nodes, device=position_N.device)
        return self._masks[window]


def tree_layout(model: Any, pack: Pack, keep: bool = False) -> TreeLayout | FlexLayout:
    """The quickest layout of a pack on the model's device that gives what ``TreeLayout`` gives."""
    if model.device.type == "cuda" and supports(model, "FlexAttention", _check, "attention goes block by block"):
        return FlexLayout(pack, model.device, keep)
    return TreeLayout(pack, model.device, keep)


def _capped(score: torch.Tensor, *_: torch.Tensor, softcap: float) -> torch.Tensor:
    return softcap * torch.tanh(score / softcap)


@cache
def _kernel(device_type: str) -> Any:
    # Only the compiled kernel leaves blocks out; on a CPU there is none with gradients.
    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention


def _check(model: Any) -> None:
    """Compare outputs and gradients of both layouts on random states of the model's size."""
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    num_groups = getattr(config, "num_key_value_heads", None) or num_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    (pack,) = pack_sequences(*check_sequences(model), token_budget=1024)
    draw = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, len(pack.input_ids), dim, generator=draw).to(model.device, model.dtype)
        for heads in (num_heads, num_groups, num_groups)
    ]
    rule = Rule(None, getattr(config, "attn_logit_softcapping", None), getattr(config, "sliding_window", None))
    results = [_outputs_and_gradients(layout(pack, model.device), states, rule) for layout in (FlexLayout, TreeLayout)]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@torch.enable_grad()
def _outputs_and_gradients(layout: Layout, states: list[torch.Tensor], rule: Rule) -> list[torch.Tensor]:
    leaves = [state.clone().requires_grad_() for state in states]
    query, key, value = leaves
    output = layout.attend(0, query, key, value, rule)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]
