"""`astra-accel completion`."""

from __future__ import annotations

import argparse
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.launching import accelerate_configs
from astra_accel.paths import user_path

SHELLS = ("bash", "zsh", "fish")
PATHS = ("config", "resume", "output", "path", "file", "runs", "first", "second")
"""The arguments that are files or folders."""


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    completion = add_command(
        commands,
        "completion",
        _completion,
        short="a script with which a shell completes these commands",
        description="Print a script with which a shell completes commands, their arguments, every field of the "
        "configuration and what it may be.",
        examples=[
            ("bash, for this shell", 'eval "$(astra-accel completion bash)"'),
            (
                "bash, for good",
                "astra-accel completion bash > ~/.local/share/bash-completion/completions/astra-accel",
            ),
            ("zsh, for good (in a folder of $fpath)", "astra-accel completion zsh > ~/.zfunc/_astra-accel"),
            ("fish, for good", "astra-accel completion fish > ~/.config/fish/completions/astra-accel.fish"),
        ],
        prints_result=True,
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell")


def _completion(known: argparse.Namespace, _: list[str]) -> int:
    import shtab

    print(shtab.complete(complete_parser(), shell=known.shell))
    return 0


def complete_parser() -> argparse.ArgumentParser:
    """The parser of all commands with each field as an argument, for shell completion only, not for parsing."""
    import shtab

    from astra_accel.cli import build_parser
    from astra_accel.config import RunConfiguration
    from astra_accel.config.fields import all_fields

    parser = build_parser()
    for command in subcommands(parser).values():
        if command.get_default("takes_fields"):
            for name, description, choices in all_fields(RunConfiguration):
                meaning = description.replace("%", "%%")  # argparse would interpolate it
                command.add_argument(f"--{name}", choices=choices or None, help=meaning)
        for action in command._actions:
            if action.dest in PATHS or action.type is user_path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            if action.dest == "accelerate_config":
                action.choices = list(accelerate_configs())  # or a file: choices only matter when parsing
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices
