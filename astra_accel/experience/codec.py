"""Encodes examples as JSON and back: bit for bit, and decoding runs no code that a file names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, str)
"""Types that JSON holds directly. Python writes the shortest digits that give back the same float; also nan and inf."""
TENSORS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class Codec:
    """Encodes plain values, tuples, lists, dicts, tensors, and the data classes that it is given.

    A step of one field, a tuple::

        Step((1, 2.5))      {"class": "Step", "fields": {"ids": {"tuple": [1, 2.5]}}}

    Args:
        classes: data classes and named tuples to support; objects are written with the class name. No other class is
            ever instantiated.
    """

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._classes = {kind.__name__: kind for kind in classes}

    @property
    def classes(self) -> list[type]:
        """The classes that this codec was given."""
        return list(self._classes.values())

    def encode(self, value: Any) -> Any:
        """Encode a value for ``json``.

        Raises:
            TypeError: the value holds an object of another class; the message names the class.
        """
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is list:
            return [self.encode(item) for item in value]
        if kind is tuple:
            return {"tuple": [self.encode(item) for item in value]}
        if kind is dict:
            return {"dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            return {"tensor": value.detach().flatten().tolist(), "dtype": dtype, "shape": list(value.shape)}
        if self._classes.get(kind.__name__) is kind:
            named = {name: self.encode(getattr(value, name)) for name in _fields(kind)}
            return {"class": kind.__name__, "fields": named}
        raise TypeError(f"{kind.__module__}.{kind.__qualname__}")

    def decode(self, value: Any) -> Any:
        """Return the value that :meth:`encode` was given.

        Raises:
            ValueError: the class of an object is not among those given, or its fields have changed; or the value is
                not one that ``encode`` returns.
        """
        if type(value) in PLAIN:
            return value
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        match value:
            case {"tuple": list(items)}:
                return tuple(self.decode(item) for item in items)
            case {"dict": list(items)}:
                return {self.decode(key): self.decode(item) for key, item in items}
            case {"tensor": list(numbers), "dtype": str(dtype), "shape": list(shape)} if dtype in TENSORS:
                return torch.tensor(numbers, dtype=TENSORS[dtype]).reshape(shape)
            case {"class": str(name), "fields": dict(named)}:
                return self._object(name, {field: self.decode(item) for field, item in named.items()})
        raise ValueError(f"found {str(value)[:80]}, which is not an encoded value")

    def _object(self, name: str, named: dict[str, Any]) -> Any:
        if name not in self._classes:
            raise ValueError(f"found an object of class {name}, expected one of {', '.join(self._classes) or 'none'}")
        try:
            return self._classes[name](**named)
        except TypeError as error:
            raise ValueError(f"found a {name} of other fields: {error}") from error


def _fields(kind: type) -> tuple[str, ...]:
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind))
    return getattr(kind, "_fields", ())
