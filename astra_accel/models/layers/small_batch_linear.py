"""Linear layers on the few rows of a decoding step.

BLAS libraries are optimised for products of two large matrices. If one has few rows, like the tokens of a decoding
step, the usual ``x W^T`` runs far below the machine's rate on a CPU. ``W x^T`` computes the same sums with the large
matrix on the left, in its memory order. On two cores of an AMD EPYC it took four fifths of the time in SmolLM2-135M's
layers and half to two thirds of it in its output layer, in float32; in bfloat16 all its products took nine tenths of
the time for 32 to 128 rows. Other machines were not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def changed_forwards(layers: Sequence[Any], change: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Within, each layer's forward is ``change(layer)``; it is restored afterwards, also after errors."""
    # A layer may already have its own forward, such as one set by Accelerate's hooks.
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = change(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward  # the class's own applies again
            if forward is not None:
                layer.forward = forward


MAX_ROWS = 128
"""The most rows for which the measurements above showed a gain."""


@contextmanager
def for_few_rows(model: Any) -> Iterator[None]:
    """Within, the linear layers of a model on a CPU compute few rows the faster way; nothing else changes.

    It does not handle gradients: use it under ``no_grad``.
    """
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear and _plain(module.weight)]
    with changed_forwards(layers, lambda layer: partial(_forward, layer, layer.forward)):
        yield


def _forward(layer: torch.nn.Linear, usual: Any, states: torch.Tensor) -> torch.Tensor:
    num_rows = states.numel() // states.shape[-1]
    if not 1 < num_rows <= MAX_ROWS:
        return usual(states)
    # The result is stored column by column. Transposing it would cost what was gained, and the next layer prefers it.
    output_OR = layer.weight @ states.reshape(num_rows, -1).T
    if layer.bias is not None:
        output_OR += layer.bias[:, None]
    return output_OR.T.view(*states.shape[:-1], -1)


def _plain(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
