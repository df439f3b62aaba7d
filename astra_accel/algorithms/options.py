"""Checks of what algorithms are made with."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` for a name that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def check_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` for what is not a finite number above 0."""
    if not 0 < value < inf:
        raise ValueError(f"{name} is {value}, expected more than 0")


def check_not_negative(name: str, value: float) -> None:
    """Raise ``ValueError`` for what is not a finite number of at least 0."""
    if not 0 <= value < inf:
        raise ValueError(f"{name} is {value}, expected at least 0")


def check_fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` for what is not a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected from 0 to 1")
