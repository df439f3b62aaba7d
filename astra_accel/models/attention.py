"""Attention over prefix trees and carried rows, in place of a transformers model's own.

A model's layers compute queries, keys and values token by token; only attention relates tokens to one another. So a
forward over tokens of many conversations needs nothing of a model but its attention replaced, which transformers'
``AttentionInterface`` does: a *layout* knows who sees whom, and attends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from astra_accel.models.support import UnsupportedModelError

IMPLEMENTATION = "astra_accel"
FULL, SLIDING = "full_attention", "sliding_attention"


class Rule(NamedTuple):
    """What a layer does with its scores.

    Attributes:
        scale: they are multiplied by this; None is one over the square root of the heads' size.
        softcap: ``softcap * tanh(score / softcap)`` after that (Gemma 2, https://arxiv.org/abs/2408.00118).
        window: how many tokens back a token sees, itself included; None is all of them.
    """

    scale: float | None
    softcap: float | None
    window: int | None


class Layout(Protocol):
    """Where the tokens of a forward stand, and so who sees whom."""

    def attend(
        self, layer: int, query_BHTD: torch.Tensor, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, rule: Rule
    ) -> torch.Tensor:
        """The attention's output ``[batch, tokens, heads, dim]``; there may be fewer key than query heads."""


class _Attending(NamedTuple):
    model: Any
    layout: Layout
    windows: list[int | None]


_attending: ContextVar[_Attending | None] = ContextVar("attending", default=None)


@contextmanager
def attending(model: Any, layout: Layout) -> Iterator[None]:
    """Forwards of a transformers model within attend as the layout does.

    Raises:
        UnsupportedModelError: a kind of layer that is neither full nor sliding attention.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    token = _attending.set(_Attending(model, layout, layer_windows(model)))
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before
        _attending.reset(token)


def attending_as_now() -> AbstractContextManager[None]:
    """A context for later that attends as the present one does: for what a backward pass computes again."""
    now = _attending.get()
    return nullcontext() if now is None else attending(now.model, now.layout)


def layer_windows(model: Any) -> list[int | None]:
    """How far each layer looks back; None is all the way.

    Raises:
        UnsupportedModelError: a kind of layer that is neither full nor sliding attention.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [FULL if window is None else SLIDING] * config.num_hidden_layers
    if not set(kinds) <= {FULL, SLIDING}:
        raise UnsupportedModelError(f"layers of type {', '.join(sorted({*kinds} - {FULL, SLIDING}))}")
    return [window if kind == SLIDING else None for kind in kinds]


def grouped_attention(
    query_BHQD: torch.Tensor, key_BGKD: torch.Tensor, value_BGKD: torch.Tensor, mask_BQK: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """Attention of ``H`` query heads to ``G`` key heads, ``[batch, queries, H, dim]``.

    The queries of all heads of a key head stand in one row, so that nobody copies keys once a head.

    Args:
        query_BHQD: ``[batch, H, queries, dim]``.
        key_BGKD, value_BGKD: ``[batch, G, keys, dim]``, ``H`` a multiple of ``G``.
        mask_BQK: is added to the scores.
        rule: what else happens to them.
    """
    batch, num_heads, num_queries, dim = query_BHQD.shape
    num_groups = key_BGKD.shape[1]
    share = num_heads // num_groups
    # Queries that lie in another order (few_rows.py) would keep the kernel from being the quick one.
    query_BGRD = query_BHQD.reshape(batch, num_groups, share * num_queries, dim).contiguous()
    mask_B1RK = mask_BQK[:, None].expand(-1, share, -1, -1).reshape(batch, 1, share * num_queries, -1)
    if rule.softcap is None:
        output_BGRD = F.scaled_dot_product_attention(
            query_BGRD, key_BGKD, value_BGKD, attn_mask=mask_B1RK, scale=rule.scale
        )
    else:
        scale = dim**-0.5 if rule.scale is None else rule.scale
        scores_BGRK = rule.softcap * torch.tanh(query_BGRD @ key_BGKD.transpose(-1, -2) * (scale / rule.softcap))
        probs_BGRK = (scores_BGRK + mask_B1RK).softmax(-1, dtype=torch.float32)
        output_BGRD = probs_BGRK.to(value_BGKD.dtype) @ value_BGKD
    return output_BGRD.reshape(batch, num_heads, num_queries, dim).transpose(1, 2)


def added_mask(position_BQ: torch.Tensor, num_keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores where key ``k`` stands at position ``k``: 0 where a query sees it, else -inf."""
    distance_BQK = position_BQ[:, :, None] - torch.arange(num_keys, device=position_BQ.device)
    seen_BQK = distance_BQK >= 0
    if window is not None:
        seen_BQK &= distance_BQK < window
    return torch.zeros(seen_BQK.shape, dtype=dtype, device=position_BQ.device).masked_fill_(~seen_BQK, -torch.inf)


def _attention(  # noqa: PLR0917
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  the layout knows
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What a model's layers call, in the form that transformers gives it."""
    now = _attending.get()
    assert now is not None
    rule = Rule(scaling, softcap, now.windows[module.layer_idx])
    return now.layout.attend(module.layer_idx, query, key, value, rule), None


AttentionInterface.register(IMPLEMENTATION, _attention)
