"""What the sections of a configuration have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
)

from astra_accel.paths import expanded

Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HomePath = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
"""A path, a hub id or a word; ``~`` is the home folder."""


class Section(BaseModel):
    """A part of a configuration: unknown fields are errors, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


class Named(Section):
    """A class by its name in a registry, and its arguments."""

    registry: ClassVar[Collection[str]]
    kind: ClassVar[str]

    name: str
    """Its name in the registry."""
    options: dict[str, Any] = {}
    """Arguments of its class."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in cls.registry:
            raise ValueError(f"unknown {cls.kind} {name!r}; expected one of {', '.join(cls.registry)}")
        return name

    @field_validator("options")
    @classmethod
    def _at_home(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Expand ``~`` in options that are paths."""
        is_path = {name: isinstance(value, str) and value.startswith("~/") for name, value in options.items()}
        return {name: expanded(value) if is_path[name] else value for name, value in options.items()}
