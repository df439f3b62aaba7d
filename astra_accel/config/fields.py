"""What configurations say of their fields, for files and completions that must not contradict them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from astra_accel.config.section import Named


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, where it holds one (or none)."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and get_origin(annotation) is not dict:
            return kind
    return None


def choices_of(model: type[BaseModel], name: str) -> tuple[str, ...]:
    """What a field may be, where it is one of few words; else nothing."""
    if issubclass(model, Named) and name == "name":
        return tuple(model.registry)
    return _literals(model.model_fields[name].annotation)


def all_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every field of a configuration that is not a section itself: dotted name, description, choices."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield f"{prefix}{name}", " ".join((field.description or "").split()), choices_of(model, name)
        else:
            yield from all_fields(section, f"{prefix}{name}.")


def _literals(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(choice for part in get_args(annotation) for choice in _literals(part))
