"""The `astra-accel` command: a thin layer over the library. Each of its commands is a file in `commands/`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress

from astra_accel import __version__
from astra_accel.commands.help import EXIT_CODES, formatted
from astra_accel.errors import ConfigurationError
from astra_accel.lasting_output import lasting_output
from astra_accel.overrides import joined, separated

COMMANDS = (
    "astra_accel.commands.init",
    "astra_accel.commands.doctor",
    "astra_accel.commands.train",
    "astra_accel.commands.evaluate",
    "astra_accel.commands.judge",
    "astra_accel.commands.compare",
    "astra_accel.commands.report",
    "astra_accel.commands.export",
    "astra_accel.commands.push",
    "astra_accel.commands.completion",
)
"""Modules with ``add_commands(commands)``, in the order of the help. Light to import: `doctor` has to run anywhere."""

START = """\
to begin with:
  astra-accel doctor                        can this machine run it?
  astra-accel init run.yaml                 a configuration to fill in
  astra-accel train --config run.yaml
  astra-accel COMMAND --help                what a command takes, with examples
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command. Commands that take fields leave `--SECTION.FIELD VALUE` to the configuration."""
    parser = argparse.ArgumentParser(
        prog="astra-accel",
        description="Train language models that red-team language models.",
        epilog=f"{START}\n{EXIT_CODES}",
        formatter_class=formatted,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"astra-accel {__version__}")
    parser.set_defaults(takes_fields=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(module).add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (2 for a mistake in the request).

    Output that no program reads, or that can't be written, never ends a command. If its output is its only result, a
    full disk is reported as an error afterwards; a reader that goes away has read what it wanted.

    Raises:
        Preempted: a signal stopped the run; a ``SystemExit`` with code 75.
    """
    with lasting_output() as output:
        known, code = _run(arguments)
    if known.prints_result and output.lost is not None and not output.lost_its_reader:
        with suppress(OSError):
            print(f"error: the result could not be printed: {output.lost}", file=sys.stderr)
        return code or 1
    return code


def _run(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, int]:
    """The parsed arguments, and the resulting exit code."""
    parser = build_parser()
    known, overrides = parser.parse_known_args(joined(sys.argv[1:] if arguments is None else arguments))
    try:
        overrides = separated(overrides)
        if overrides and not known.takes_fields:
            parser.error(f"unrecognized arguments: {' '.join(overrides)}")
        return known, known.run(known, overrides)
    except (FileNotFoundError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return known, 2
    except ModuleNotFoundError as error:
        if not _is_required(error.name):
            raise
        print(f"error: {error}; `astra-accel doctor` says what is missing and how to get it", file=sys.stderr)
        return known, 2


def _is_required(module: str | None) -> bool:
    """Whether a module that could not be imported belongs to a package that every installation has."""
    from astra_accel.doctor.packages import required_modules

    return module is not None and module.partition(".")[0] in required_modules()


if __name__ == "__main__":
    sys.exit(main())
