"""Whether a class takes the options that a configuration gives it: their names, and their types as it annotates them.

Light on purpose: pydantic, and no torch but what the class itself has imported.
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

# A number in quotes is no number, true is no 1, and no option means anything at nan or infinity.
_STRICTLY = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_options(cls: type, options: Mapping[str, Any], what: str, field: str, without: str = "system") -> None:
    """Find an option that a class does not take, or not with such a value.

    Args:
        cls: whose constructor is asked.
        options: by name.
        what: it is, as in "algorithm 'dpo'".
        field: where the options stand, as in "algorithm.options".
        without: an argument of the constructor that is no option.

    Raises:
        ConfigurationError: names each such option with its field, what was found and what is expected.
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
        # A model of pydantic's own has its own rules, and refuses others.
        adapter: TypeAdapter[Any] = TypeAdapter(expected, config=_STRICTLY)
    except PydanticUserError:
        adapter = TypeAdapter(expected)
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        # Of a union each part has a reason of its own.
        reasons = dict.fromkeys(item["msg"][0].lower() + item["msg"][1:] for item in error.errors(include_url=False))
        return [f"{field}: found {value!r}; {' or '.join(reasons)}"]
    return []


def _annotation(cls: type, parameter: inspect.Parameter) -> Any:
    """The type of an argument; any, where it has none or one that is only there for type checkers."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    alone = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(alone, globalns=getattr(init, "__globals__", {}))[parameter.name]
    except NameError:
        return Any
