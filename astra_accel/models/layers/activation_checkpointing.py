"""Activation checkpointing of a model's layers, for one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from astra_accel.models.forward.attention import attending_as_now
from astra_accel.models.layers.small_batch_linear import changed_forwards


def checkpointed_layers(model: Any) -> list[Any]:
    """The layers that can recompute their activations."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def activation_checkpointing(model: Any) -> Iterator[None]:
    """Within, a forward keeps only the inputs of the layers; the backward pass may come later.

    transformers' own checkpointing requires training mode, which turns dropout on; a tester trains without it. So the
    layers' forwards are wrapped instead.
    """

    def change(layer: Any) -> Callable[..., Any]:
        return partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)

    with changed_forwards(checkpointed_layers(model), change):
        yield


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the forward, and for the backward pass that repeats it with the same attention."""
    return nullcontext(), attending_as_now()
