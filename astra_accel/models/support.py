"""What a model can do is found out once, by comparing with the plain way, and said once."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

logger = logging.getLogger(__name__)

CHECK_WINDOW = 8
# Nats, relative to the larger of 1 and the log-prob. A mask or a position that a model does not obey changes far more.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_reasons: WeakKeyDictionary[torch.nn.Module, dict[tuple[str, str], str | None]] = WeakKeyDictionary()


class UnsupportedModelError(ValueError):
    """A model that can't be run in a way that was asked for; says why."""


def transformers_model(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, whose adapter layers are in it; else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supports(model: Any, feature: str, check: Callable[[Any], None], otherwise: str, *, required: bool = False) -> bool:
    """Whether a model passes a check, which runs once a model.

    Args:
        model: a transformers model.
        feature: what is checked, for messages.
        check: raises where the model can't do it, and compares its results by :func:`assert_same`.
        otherwise: what happens instead, for the one message.
        required: raise instead of returning False.

    Raises:
        UnsupportedModelError: the check failed and ``required`` is set.
    """
    reasons = _reasons.setdefault(model, {})
    # Another attention implementation is another model.
    key = (feature, str(model.config.get_text_config()._attn_implementation))
    if key not in reasons:
        # In the weights' own precision: in mixed precision what is the same twice differs by more than the tolerance.
        with torch.no_grad(), _narrow_window(model), torch.autocast(model.device.type, enabled=False):
            reasons[key] = _reason(check, model)
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
        if not error <= TOLERANCE.get(dtype, 1e-4):  # NaN is not
            raise UnsupportedModelError(f"log-probs differ by {error:.1e} from the plain way")


def check_sequences(model: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Contexts and continuations that share prefixes, branch within continuations, and differ in length."""
    draw = random.Random(0)
    vocabulary = model.config.get_text_config().vocab_size
    root, branch, leaf, other = ([draw.randrange(vocabulary) for _ in range(length)] for length in (9, 5, 4, 3))
    contexts = [root, root, [*root, *branch], [*root, *branch], other]
    continuations = [[*branch, *leaf], branch[:2] + other, leaf, other, leaf[:2]]
    return contexts, continuations


def plain_logprobs(model: Any, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[torch.Tensor]:
    """One forward a sequence: no mask, no padding, no cache, a whole log-softmax."""
    results = []
    for context, continuation in zip(contexts, continuations, strict=True):
        ids_1T = torch.tensor([[*context, *continuation]], device=model.device)
        logprobs_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float().log_softmax(-1)
        place_S = torch.arange(len(continuation), device=model.device) + len(context) - 1
        results.append(logprobs_TV[place_S, ids_1T[0, len(context) :]])
    return results


def _reason(check: Callable[[Any], None], model: Any) -> str | None:
    try:
        check(model)
    except torch.OutOfMemoryError:
        raise
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _narrow_window(model: Any) -> Iterator[None]:
    """Let a sliding window be shorter than the sequences of a check, so that the check says something about it."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None:
        yield
        return
    config.sliding_window = min(window, CHECK_WINDOW)
    try:
        yield
    finally:
        config.sliding_window = window
