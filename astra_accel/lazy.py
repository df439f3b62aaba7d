"""Names that load on first use, so that ``import astra_accel`` takes no time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def load(location: str) -> Any:
    """The object that ``"package.module:name"`` points to."""
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
    """The class that a registry has under a name, after checking that it accepts the options.

    Args:
        registry: the locations by name.
        name: the name to look up.
        what: what the registry holds.
        options: the arguments for the class.
        field: where the options are in a configuration; None is ``<what>.options``.

    Raises:
        ValueError: there is no such name, or the class does not accept an option or its value; lists what is available.
    """
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(registry)}")
    cls = load(registry[name])
    from astra_accel.arguments import check_options  # pydantic takes a while to import

    check_options(cls, options, f"{what} {name!r}", field or f"{what}.options")
    return cls
