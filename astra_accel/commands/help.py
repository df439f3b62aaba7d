"""The `--help` text of every command: what it does, examples, exit codes."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

WIDTH = 79
EXIT_CODES = """\
exit codes:
  0   done
  1   it failed on the way; of doctor: a run can't start
  2   a mistake in the command or configuration, reported before anything started
  75  a signal stopped the run at a checkpoint: give the command again with
      --resume auto (under accelerate launch, the launcher makes this 1)
"""

Run = Callable[[argparse.Namespace, list[str]], int]


def formatted(prog: str) -> argparse.HelpFormatter:
    """Help that keeps the lines of examples."""
    return argparse.RawDescriptionHelpFormatter(prog, width=WIDTH)


def add_command(
    commands: Any,
    name: str,
    run: Run,
    *,
    short: str,
    description: str,
    examples: Sequence[tuple[str, str]],
    usage: str | None = None,
    takes_fields: bool = False,
    prints_result: bool = False,
) -> argparse.ArgumentParser:
    """Add a command to the main parser.

    Args:
        commands: what ``add_subparsers`` returned.
        name: the command's name.
        run: runs it: maps the parsed arguments, and those that no parser knew, to an exit code.
        short: one line for the list of commands.
        description: what it does, in sentences.
        examples: pairs of a goal and the command line for it.
        usage: its arguments in one line, if argparse's own line would say too little.
        takes_fields: whether arguments it does not know are fields of the configuration.
        prints_result: whether its result is its printed output rather than files.
    """
    shown = "".join(f"  # {wanted}\n  {command}\n" for wanted, command in examples)
    parser = commands.add_parser(
        name,
        help=short,
        description=textwrap.fill(description, WIDTH),
        usage=None if usage is None else _folded(f"astra-accel {name} {usage}"),
        epilog=f"examples:\n{shown}\n{EXIT_CODES}",
        formatter_class=formatted,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_fields=takes_fields, prints_result=prints_result)
    return parser


def _folded(usage: str) -> str:
    """The usage wrapped to the width, without separating an argument from its value."""
    whole = re.sub(r"\[[^]]*]", lambda argument: argument[0].replace(" ", "\0"), usage)
    lines = textwrap.wrap(whole, WIDTH - len("usage: "), subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")
