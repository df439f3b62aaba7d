"""Errors that need no imports, so that a command can catch them wherever it runs."""

from __future__ import annotations

from pathlib import Path

# EX_TEMPFAIL in sysexits.h: nothing is wrong, start it again later.
EXIT_CODE = 75


class ConfigurationError(ValueError):
    """A configuration that can't be run; the message names each field, what was found and what was expected."""


class Preempted(SystemExit):
    """A signal stopped the run after a training step. If uncaught, it ends the program with ``EXIT_CODE``.

    Attributes:
        checkpoint: the checkpoint from which the run continues.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(EXIT_CODE)
        self.checkpoint = checkpoint


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a model's output in a rollout is not finite; the optimizer did not step."""


class SharingError(ConfigurationError):
    """Something can't be exported or uploaded; the message says why, and what to do."""
