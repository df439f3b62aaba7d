"""What a model can do is checked once, by comparison with the plain way, and reported once."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import torch

from astra_accel.models.decoding.length_regimes import length_regimes, rotary_parameters, without_earlier_lengths
from astra_accel.models.decoding.token_sampling import NonFiniteLogitsError, check_finite
from astra_accel.models.loading.embedding_rows import known_rows
from astra_accel.models.memory import free_memory

logger = logging.getLogger(__name__)

CHECK_LENGTH = 8
"""In a check, windows, chunks and length limits are no longer than this, and sequences go beyond it."""

LIMITS = (
    "sliding_window",
    "attention_chunk_size",
    "original_max_position_embeddings",
    "original_max_seq_len",
    "max_seq_len_cached",
    "floor_scale",
    "log_scaling_n_floor",
    "attention_window_size",
    "sliding_window_size",
    "window_size",
    "index_topk",
    "keep_window_size",
)
"""The names in configurations and layers for a length at which something changes: windows and chunks, rotary limits,
steps in which queries are scaled by their position, numbers of keys that sparse attention keeps."""

HALVES = (torch.bfloat16, torch.float16)

# Nats, relative to the larger of 1 and the log-prob. A mask or a position that a model ignores changes far more, except
# in 16 bits: in SmolLM2-135M, positions that are one too high change log-probs by 0.05 to 0.16, and rounding to
# bfloat16 alone by up to 0.04 (0.7 nats). So 16-bit models are checked with their weights in float32 too, if there is
# room for those. The check in 16 bits then only has to find an operation that is wrong only in that type.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
WIDE_TOLERANCE = {**TOLERANCE, torch.float16: 1e-1, torch.bfloat16: 5e-1}

_tolerance = ContextVar("_tolerance", default=TOLERANCE)

_reasons: WeakKeyDictionary[torch.nn.Module, dict[tuple[str, str], str | None]] = WeakKeyDictionary()


class UnsupportedModelError(ValueError):
    """A model can't be run in a requested way; the message says why."""


def transformers_model(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, with its adapter layers; else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supports(model: Any, feature: str, check: Callable[[Any], None], otherwise: str, *, required: bool = False) -> bool:
    """Whether a model passes a check, which runs once per model.

    Args:
        model: a transformers model.
        feature: what is checked, for messages.
        check: raises if the model can't do it, and compares its results by :func:`assert_same`.
        otherwise: what happens instead, for the warning.
        required: whether to raise instead of returning False.

    Raises:
        UnsupportedModelError: the check failed and ``required`` is set.
    """
    reasons = _reasons.setdefault(model, {})
    # Another attention implementation counts as another model.
    key = (feature, str(model.config.get_text_config()._attn_implementation))
    if key not in reasons:
        # Not in mixed precision, where equal computations differ by more than the tolerance.
        with torch.no_grad(), _short_limits(model), torch.autocast(model.device.type, enabled=False):
            reasons[key] = _reason_twice(check, model) if _fits_in_float32(model) else _reason(check, model)
        if reasons[key] is not None and not required:
            logger.warning("%s can't do %s (%s): %s.", type(model).__name__, feature, reasons[key], otherwise)
    if required and reasons[key] is not None:
        raise UnsupportedModelError(f"{type(model).__name__} can't do {feature}: {reasons[key]}")
    return reasons[key] is None


def assert_same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
    """Compare log-probs with those of the plain way.

    Raises:
        UnsupportedModelError: they differ by more than rounding.
    """
    for one, other in zip(found, expected, strict=True):
        error = ((one - other).abs() / other.abs().clamp(min=1)).max()
        if not error <= _tolerance.get().get(dtype, 1e-4):  # NaN is not
            raise UnsupportedModelError(f"log-probs differ by {error:.1e} from the plain way")


def check_sequences(model: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Contexts and continuations that share prefixes, branch within continuations, and differ in length.

    Some are longer than ``CHECK_LENGTH`` from their first predicted token on, one stays below it, and one begins below
    it and ends beyond.
    """
    draw = random.Random(0)
    rows = known_rows(model) or model.config.get_text_config().vocab_size
    # Rows that pad a vocabulary have no logits.
    vocabulary = getattr(model.config.get_text_config(), "unpadded_vocab_size", None) or rows
    root, branch, leaf, other = ([draw.randrange(vocabulary) for _ in range(length)] for length in (9, 5, 4, 3))
    contexts = [root, root, [*root, *branch], [*root, *branch], other, other]
    continuations = [[*branch, *leaf], branch[:2] + other, leaf, other, leaf[:2], [*leaf, *branch]]
    return contexts, continuations


def plain_logprobs(model: Any, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[torch.Tensor]:
    """Log-probs by one forward per sequence: no mask, no padding, no cache, a whole log-softmax.

    If a sequence crosses a length at which a model may change, there is one forward per token, over the tokens before
    it.

    Raises:
        NonFiniteLogitsError: the logits hold nan or inf, with which nothing can be compared.
    """
    regimes = length_regimes(model)
    results = []
    for context, continuation in zip(contexts, continuations, strict=True):
        ids, first, last = [*context, *continuation], len(context), len(context) + len(continuation) - 1
        changes = first <= CHECK_LENGTH < last or regimes.regime_of(first) != regimes.regime_of(last)
        lengths = range(first, last + 1) if changes else [last]
        logits_SV = torch.cat([_plain_logits(model, ids[:length], -1 if changes else first - 1) for length in lengths])
        token_S1 = torch.tensor(continuation, device=model.device)[:, None]
        results.append(logits_SV.log_softmax(-1).gather(-1, token_S1).squeeze(-1))
        check_finite(results[-1].tolist())
    return results


def _plain_logits(model: Any, ids: Sequence[int], start: int) -> torch.Tensor:
    """The logits from position ``start`` on, ``[tokens, vocabulary]``, float32."""
    ids_1T = torch.tensor([ids], device=model.device)
    with without_earlier_lengths(model):
        return model(input_ids=ids_1T, use_cache=False).logits[0, start:].float()


def _reason(check: Callable[[Any], None], model: Any) -> str | None:
    try:
        check(model)
    except (torch.OutOfMemoryError, NonFiniteLogitsError):
        raise
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _reason_twice(check: Callable[[Any], None], model: Any) -> str | None:
    """What is wrong with a 16-bit model in float32, where rounding is negligible; else in its own type."""
    with in_float32(model):
        reason = _reason(check, model)
    if reason is not None:
        return reason
    before = _tolerance.set(WIDE_TOLERANCE)
    try:
        return _reason(check, model)
    finally:
        _tolerance.reset(before)


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within, 16-bit weights are float32; afterwards they are what they were, bit for bit."""
    kept = [(one, one.data) for one in chain(model.parameters(), model.buffers()) if one.dtype in HALVES]
    try:
        for one, data in kept:
            one.data = data.float()
        yield
    finally:
        for one, data in kept:
            one.data = data


def _fits_in_float32(model: Any) -> bool:
    """Whether a model has plain 16-bit weights, and the device has room for a float32 copy of them."""
    halves = [one for one in model.parameters() if one.dtype in HALVES]
    if not halves or not all(type(one) is torch.nn.Parameter for one in model.parameters()):
        return False
    needed = sum(4 * one.numel() for one in halves)
    return model.device.type != "meta" and needed < free_memory(model.device) / 2


@contextmanager
def _short_limits(model: Any) -> Iterator[None]:
    """Make windows, chunks and length limits shorter than the sequences of a check.

    Otherwise a check does not reach what a model does beyond them: a window of 4096, rotary factors that change there,
    queries that are scaled by their position in steps of 8192.
    """
    config = model.config.get_text_config()
    holders = [vars(each) for each in (config, *model.modules())] + rotary_parameters(config)
    limits = [(holder, name) for holder in holders for name in LIMITS if _is_longer(holder.get(name))]
    longest = getattr(config, "max_position_embeddings", None) or inf
    # Doge sees later tokens beyond it, but never gets that far.
    limits = [(holder, name) for holder, name in limits if name != "keep_window_size" or holder[name] < longest]
    if length_regimes(model).grows_beyond is not None:
        limits.append((vars(config), "max_position_embeddings"))
    before = [holder[name] for holder, name in limits]
    try:
        for holder, name in limits:
            holder[name] = type(holder[name])(CHECK_LENGTH)
        yield
    finally:
        for (holder, name), value in zip(limits, before, strict=True):
            holder[name] = value


def _is_longer(limit: Any) -> bool:
    return isinstance(limit, int | float) and limit > CHECK_LENGTH
