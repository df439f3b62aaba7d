"""Errors that need nothing to be imported, so that a command can catch them wherever it runs."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """A configuration that can't be run; the message names each field, what was found and what was expected."""
