"""Layers that compute in another way for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def changed_forwards(layers: Sequence[Any], change: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Within, each layer's forward is what ``change`` makes of the layer; afterwards what it was, also after errors."""
    # A layer may have a forward of its own already, such as Accelerate's hooks set.
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = change(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward  # the class's own shows again
            if forward is not None:
                layer.forward = forward
