"""Lengths at which a model begins to read all its tokens differently.

Rotary embeddings for long texts choose their frequencies by the longest position of the whole forward: ``longrope``
(Phi-3, Phi-3.5, Phi-4-mini, Phi-3.5-MoE) has one set of factors up to its pretraining length and another beyond it, and
``dynamic`` NTK scaling has different frequencies for every length beyond. So a forward's output for a short sequence
depends on the longest sequence beside it, and a key that was read early differs from that of a later forward.

The policy: a token has the probability that the model gives it in one forward over the tokens before it, and nothing
else. Sampling and scoring both follow it: sequences share a forward, and keys a cache, only if all their lengths are in
one *regime*, and a sequence that grows into the next regime is read again there. transformers' own ``generate`` does
the same for Phi-3, whose cache it drops at the limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from astra_accel.models.forward.prefix_tree import Tokens


@dataclass(frozen=True)
class LengthRegimes:
    """Where the frequencies change, in tokens that a forward reads.

    Attributes:
        limits: the longest length of each regime but the last, ascending.
        grows_beyond: every length beyond this one is its own regime; None if there is no such length.
    """

    limits: tuple[int, ...] = ()
    grows_beyond: int | None = None

    def regime_of(self, length: int) -> int:
        """The number of the regime that a forward over ``length`` tokens is in; shorter ones have smaller numbers."""
        growth = 0 if self.grows_beyond is None else max(0, length - self.grows_beyond)
        return bisect_left(self.limits, length) + growth

    def longest_like(self, length: int) -> int | None:
        """The longest length of the same regime; None if it has no end."""
        if self.grows_beyond is not None and length > self.grows_beyond:
            return length
        further = [limit for limit in (*self.limits, self.grows_beyond) if limit is not None and limit >= length]
        return min(further, default=None)

    @property
    def count(self) -> int | None:
        """The number of regimes; None if it is unbounded."""
        return len(self.limits) + 1 if self.grows_beyond is None else None


@dataclass(frozen=True)
class Piece:
    """Tokens of one continuation that are all predicted in one regime.

    Attributes:
        sequence: the index of the continuation's sequence.
        context: the tokens before the piece.
        continuation: the tokens of the piece.
        regime: the regime of the lengths before each token.
    """

    sequence: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]
    regime: int


def length_regimes(model: Any) -> LengthRegimes:
    """The regimes of a transformers model, from its configuration; most models have one for all lengths."""
    config = model.config.get_text_config()
    limits: set[int] = set()
    grows_beyond = None
    for rotary in rotary_parameters(config):
        kind = rotary.get("rope_type") or ""
        # Phi-3.5-MoE has its own scaling by length, whatever the kind.
        if kind == "longrope" or "long_mscale" in rotary:
            limits.add(rotary["original_max_position_embeddings"])
        if "dynamic" in kind:
            grows_beyond = config.max_position_embeddings
    return LengthRegimes(tuple(sorted(limits)), grows_beyond)


def rotary_parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary settings of a text configuration: one for all layers, or one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def split_by_regime(
    regimes: LengthRegimes, contexts: Sequence[Tokens], continuations: Sequence[Tokens]
) -> dict[int, list[Piece]]:
    """The continuations by regime, shortest lengths first; one that grows into the next regime is cut there."""
    groups: dict[int, list[Piece]] = {}
    for sequence, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        ids, at, end = (*context, *continuation), len(context), len(context) + len(continuation)
        while at < end:
            # The token at place ``last`` is predicted by a forward over ``last`` tokens.
            last = regimes.longest_like(at)
            until = end if last is None else min(last + 1, end)
            piece = Piece(sequence, ids[:at], ids[at:until], regimes.regime_of(at))
            groups.setdefault(piece.regime, []).append(piece)
            at = until
    return dict(sorted(groups.items()))


@contextmanager
def without_earlier_lengths(model: Any) -> Iterator[None]:
    """Within, a forward does not depend on earlier ones, nor later ones on it.

    Dynamic NTK scaling keeps the frequencies of the longest forward so far, and still uses them at the limit itself.
    """
    rotary = [module for module in model.modules() if _keeps_lengths(module)] if _is_dynamic(model) else []
    try:
        for module in rotary:
            _forget(module)
        yield
    finally:
        for module in rotary:
            _forget(module)


def _is_dynamic(model: Any) -> bool:
    return any("dynamic" in (each.get("rope_type") or "") for each in rotary_parameters(model.config.get_text_config()))


def _keeps_lengths(module: torch.nn.Module) -> bool:
    return hasattr(module, "rope_type") and hasattr(module, "original_max_seq_len")


def _forget(module: Any) -> None:
    """Reset a rotary embedding to what it was built with."""
    kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
    for layer_type, kind in kinds.items():
        if "dynamic" not in (kind or ""):
            continue
        prefix = "" if layer_type is None else f"{layer_type}_"
        built_with = getattr(module, f"{prefix}original_inv_freq")
        in_use = getattr(module, f"{prefix}inv_freq")
        if in_use is not built_with:
            setattr(module, f"{prefix}inv_freq", built_with.to(in_use.device))
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
