"""Attention over prefix trees and carried rows, instead of a transformers model's own.

A model's layers compute queries, keys and values token by token; only attention relates tokens to one another. So a
forward over tokens of many conversations only needs a model's attention replaced, which transformers'
``AttentionInterface`` does: a *layout* knows which token sees which, and attends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface

from astra_accel.models.forward.capabilities import UnsupportedModelError

IMPLEMENTATION = "astra_accel"
FULL, SLIDING = "full_attention", "sliding_attention"

MAX_SCORES = 2**24
"""The most scores of a part that are made at once, which bounds memory. A choice that was not measured."""


class Rule(NamedTuple):
    """What a layer does with its scores.

    Attributes:
        scale: the factor that they are multiplied by; None is one over the square root of the head size.
        softcap: ``softcap * tanh(score / softcap)`` after that (Gemma 2, https://arxiv.org/abs/2408.00118).
        window: how many tokens back a token sees, itself included; None is all of them.
    """

    scale: float | None
    softcap: float | None
    window: int | None


class Layout(Protocol):
    """Where the tokens of a forward are, and so which token sees which."""

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
    """Within, forwards of a transformers model attend as the layout does.

    Raises:
        UnsupportedModelError: a layer has neither full nor sliding attention.
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
    """A context for later that attends as the current one does, for what a backward pass recomputes."""
    now = _attending.get()
    return nullcontext() if now is None else attending(now.model, now.layout)


def layer_windows(model: Any) -> list[int | None]:
    """How far each layer looks back; None is all the way.

    Raises:
        UnsupportedModelError: a layer has neither full nor sliding attention.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [FULL if window is None else SLIDING] * config.num_hidden_layers
    if not set(kinds) <= {FULL, SLIDING}:
        raise UnsupportedModelError(f"layers of type {', '.join(sorted({*kinds} - {FULL, SLIDING}))}")
    return [window if kind == SLIDING else None for kind in kinds]


class PartialAttention(NamedTuple):
    """Attention to some of the keys, to be merged with that to others.

    Attributes:
        output_BHQD: attention as if there were no other keys.
        lse_BHQ: the logarithm of the sum of the scores' exponentials, float32.
    """

    output_BHQD: torch.Tensor
    lse_BHQ: torch.Tensor


def attention_part(
    query_BHQD: torch.Tensor,
    key_BGKD: torch.Tensor,
    value_BGKD: torch.Tensor,
    mask_BQK: torch.Tensor | None,
    rule: Rule,
) -> PartialAttention:
    """Attention of ``H`` query heads to the keys of ``G`` key heads, without gradients.

    The queries of all heads of a key head form one row, so that keys are not copied for each head.

    Args:
        query_BHQD: ``[batch, H, queries, dim]``.
        key_BGKD, value_BGKD: ``[batch, G, keys, dim]``, ``H`` a multiple of ``G``.
        mask_BQK: the mask that is added to the scores; one row may serve for all queries, and None adds nothing.
        rule: what else is done to the scores. With a window a query may see none of the keys.
    """
    num_heads, num_queries = query_BHQD.shape[1:3]
    share = num_heads // key_BGKD.shape[1]
    # Queries in another memory order (small_batch_linear.py) would keep the fast kernel from being used.
    query_BGRD = query_BHQD.reshape(len(query_BHQD), -1, share * num_queries, query_BHQD.shape[-1]).contiguous()
    mask_B1RK = None
    if mask_BQK is not None:
        mask_B1RK = (mask_BQK if mask_BQK.shape[1] == 1 else mask_BQK.repeat(1, share, 1))[:, None]
    scale = query_BHQD.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    if rule.softcap is None and rule.window is None and query_BHQD.device.type == "cpu":
        mask = None if mask_B1RK is None else mask_B1RK.to(query_BGRD.dtype)
        part = PartialAttention(*_flash(query_BGRD, key_BGKD, value_BGKD, attn_mask=mask, scale=scale))
    else:
        part = _plain_part(query_BGRD * scale, key_BGKD, value_BGKD, mask_B1RK, rule.softcap)
    output_BGRD, lse_BGR = part
    return PartialAttention(output_BGRD.reshape(query_BHQD.shape), lse_BGR.reshape(query_BHQD.shape[:3]))


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""What ``F.scaled_dot_product_attention`` calls on a CPU, which does not return the logarithm."""


def _plain_part(
    query_BGRD: torch.Tensor,
    key_BGKD: torch.Tensor,
    value_BGKD: torch.Tensor,
    mask_B1RK: torch.Tensor | None,
    softcap: float | None,
) -> PartialAttention:
    size = max(1, MAX_SCORES // (query_BGRD.shape[1] * query_BGRD.shape[2] * key_BGKD.shape[2]))
    parts = []
    for at in range(0, len(query_BGRD), size):
        rows = slice(at, at + size)
        scores_BGRK = (query_BGRD[rows] @ key_BGKD[rows].transpose(-1, -2)).float()
        if softcap is not None:
            scores_BGRK = softcap * torch.tanh_(scores_BGRK.div_(softcap))
        if mask_B1RK is not None:
            scores_BGRK += mask_B1RK[rows]
        # Where a query sees none of the keys, -inf minus -inf and 0 / 0 would be NaN.
        limits = torch.finfo(scores_BGRK.dtype)
        highest_BGR1 = scores_BGRK.amax(-1, keepdim=True).clamp_(min=limits.min)
        weights_BGRK = scores_BGRK.sub_(highest_BGR1).exp_()
        total_BGR1 = weights_BGRK.sum(-1, keepdim=True).clamp_(min=limits.tiny)
        output_BGRD = (weights_BGRK / total_BGR1).to(value_BGKD.dtype) @ value_BGKD[rows]
        parts.append(PartialAttention(output_BGRD, (highest_BGR1 + total_BGR1.log()).squeeze(-1)))
    return parts[0] if len(parts) == 1 else PartialAttention(*map(torch.cat, zip(*parts, strict=True)))


def merge_partial_attention(one: PartialAttention, other: PartialAttention) -> torch.Tensor:
    """Attention to the keys of both parts, ``[batch, H, queries, dim]``; every query sees at least one of them.

    The softmax over both is computed from those over each, as in "Online normalizer calculation for softmax" (Milakov
    and Gimelshein 2018, https://arxiv.org/abs/1805.02867, section 3.1).
    """
    share_BHQ1 = (one.lse_BHQ - other.lse_BHQ).sigmoid_()[..., None]
    return torch.lerp(other.output_BHQD, one.output_BHQD, share_BHQ1.to(one.output_BHQD.dtype))


def added_mask(position_BQ: torch.Tensor, num_keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores if key ``k`` is at position ``k``: 0 where a query sees it, else -inf."""
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
    """The function that a model's layers call, with the signature that transformers expects."""
    now = _attending.get()
    assert now is not None
    rule = Rule(scaling, softcap, now.windows[module.layer_idx])
    return now.layout.attend(module.layer_idx, query, key, value, rule), None


AttentionInterface.register(IMPLEMENTATION, _attention)
