"""Names that load when they are used, so that ``import astra_accel`` takes no time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def load(location: str) -> Any:
    """What ``"package.module:name"`` points to."""
    module, _, name = location.partition(":")
    return getattr(importlib.import_module(module), name)


def load_attribute(module: str, name: str, locations: Mapping[str, str]) -> Any:
    """For a module's ``__getattr__``: the attribute from its location, or the usual ``AttributeError``."""
    if name not in locations:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return load(locations[name])


def load_named(
    registry: Mapping[str, str], name: str, what: str, options: Mapping[str, Any], field: str | None = None
) -> Any:
    """The class that a registry has under a name, once it is sure to take the options.

    Args:
        registry: locations by name.
        name: to be looked up.
        what: the registry holds.
        options: arguments for the class.
        field: where the options stand in a configuration; None is ``<what>.options``.

    Raises:
        ValueError: no such name, or the class takes no such option, or not with such a value; says what there is.
    """
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(registry)}")
    cls = load(registry[name])
    from astra_accel.arguments import check_options  # pydantic takes a while to import

    check_options(cls, options, f"{what} {name!r}", field or f"{what}.options")
    return cls
