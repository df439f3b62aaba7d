"""Errors that need no imports, so that a command can catch them wherever it runs."""

from __future__ import annotations

from pathlib import Path

# EX_TEMPFAIL in sysexits.h: nothing is wrong, start it again later.
EXIT_CODE = 75


class ConfigurationError(ValueError):
    """A configuration that can't be run; the message names each field, what was found and what was expected."""


class Preempted(SystemExit):
    """The run stopped after a training step, by a signal or as it was interrupted. If uncaught, it ends the program.

    Attributes:
        checkpoint: the checkpoint from which the run continues.
        code: what the program ends with; ``EXIT_CODE`` if nothing is wrong and it may just be started again.
    """

    def __init__(self, checkpoint: Path, code: int = EXIT_CODE) -> None:
        super().__init__(code)
        self.checkpoint = checkpoint


class Interrupted(RuntimeError):
    """A run can't continue for now; what it has written is whole, and it can be resumed. The message says why.

    Attributes:
        exit_code: what a program ends with.
        in_order: whether the run ends as if it were over, with its tester written.
    """

    exit_code = 1
    in_order = False


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a model's output in a rollout is not finite; the optimizer did not step."""


class SharingError(ConfigurationError):
    """Something can't be exported or uploaded; the message says why, and what to do."""
