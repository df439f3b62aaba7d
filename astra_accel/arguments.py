"""Checks that a class accepts the options that a configuration gives it: their names, and their annotated types.

Deliberately light: imports pydantic, and no torch beyond what the class itself has imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from astra_accel.errors import ConfigurationError

# A quoted number is not a number, true is not 1, and no option makes sense at nan or infinity.
_STRICTLY = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_options(cls: type, options: Mapping[str, Any], what: str, field: str, without: str = "system") -> None:
    """Reject options, or values of them, that a class does not accept.

    Args:
        cls: the class whose constructor takes the options.
        options: the options by name.
        what: what the class is, such as "algorithm 'dpo'".
        field: where the options are, such as "algorithm.options".
        without: an argument of the constructor that is not an option.

    Raises:
        ConfigurationError: an option is not accepted; names each with its field, what was found and what is expected.
    """
    parameters = {name: one for name, one in inspect.signature(cls).parameters.items() if name != without}
    unknown = [name for name in options if name not in parameters]
    if unknown:
        alike = [close for name in unknown for close in get_close_matches(name, parameters, 1)]
        raise ConfigurationError(
            f"{field}: {what} takes no option {', '.join(map(repr, unknown))}; expected {', '.join(parameters) or None}"
            + "".join(f"; did you mean {name!r}?" for name in alike)
        )
    faults = [
        line for name, value in options.items() for line in _faults(cls, parameters[name], value, f"{field}.{name}")
    ]
    if faults:
        raise ConfigurationError("; ".join(faults))


def _faults(cls: type, parameter: inspect.Parameter, value: Any, field: str) -> list[str]:
    expected = _annotation(cls, parameter)
    try:
        # A pydantic model has its own rules and does not accept others.
        adapter: TypeAdapter[Any] = TypeAdapter(expected, config=_STRICTLY)
    except PydanticUserError:
        adapter = TypeAdapter(expected)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        # Each member of a union has its own reason.
        reasons = dict.fromkeys(item["msg"][0].lower() + item["msg"][1:] for item in error.errors(include_url=False))
        return [f"{field}: found {value!r}; {' or '.join(reasons)}"]
    return []


def _annotation(cls: type, parameter: inspect.Parameter) -> Any:
    """The type of an argument; ``Any`` if it has none, or one imported only for type checkers."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    alone = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(alone, globalns=getattr(init, "__globals__", {}))[parameter.name]
    except NameError:
        return Any
