"""Fields of the configuration on the command line: ``--SECTION.FIELD VALUE``, whatever the value looks like.

argparse treats a value that begins with a dash as the next option, unless it is a number without exponent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from astra_accel.errors import ConfigurationError

_NAME = r"--[A-Za-z][\w.-]*"
_OPTION = re.compile(rf"{_NAME}(=.*)?", re.DOTALL)
_FIELD = re.compile(r"--[A-Za-z]\w*(\.[\w-]+)+")


def joined(arguments: Sequence[str]) -> list[str]:
    """Arguments with every ``--SECTION.FIELD VALUE`` joined, so that no parser takes the value for its own option."""
    return list(_joined(list(arguments)))


def _joined(pending: list[str]) -> Iterator[str]:
    while pending:
        argument = pending.pop(0)
        if _FIELD.fullmatch(argument) and pending and not _OPTION.fullmatch(pending[0]):
            argument = f"{argument}={pending.pop(0)}"
        yield argument


def separated(overrides: Sequence[str]) -> list[str]:
    """Overrides in the form in which pydantic-settings reads every value in full.

    Values are separate arguments, except those that begin with a dash, which stay joined to their names.

    Raises:
        ConfigurationError: a value can't be read in either form.
    """
    found = []
    for argument in joined(overrides):
        name, equals, value = argument.partition("=")
        if not equals or not _OPTION.fullmatch(argument):
            found.append(argument)
        elif not value.startswith("-"):
            found += [name, value]
        elif "\n" in value:
            raise ConfigurationError(
                f"command line: {name} has a value of several lines that begins with a dash, {value!r}; expected it "
                f"in the file of the configuration"
            )
        else:
            found.append(argument)
    return found
