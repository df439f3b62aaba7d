import re
import shlex

import pytest

from astra_accel import __version__, config
from astra_accel.cli import build_parser, main
from astra_accel.commands.completion import subcommands
from astra_accel.errors import EXIT_CODE

COMMANDS = subcommands(build_parser())


def examples(command):
    """The command lines of a command's examples."""
    text = COMMANDS[command].epilog.replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith("astra-accel")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])

    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "examples:\n  # " in shown
    for code in (0, 1, 2, EXIT_CODE):
        assert re.search(rf"^  {code} +\w", shown, re.MULTILINE)
    assert max(len(line) for line in COMMANDS[command].format_help().splitlines()) <= 100


@pytest.mark.parametrize(("command", "line"), [(command, line) for command in COMMANDS for line in examples(command)])
def test_an_example_is_one_that_the_command_takes(command, line):
    words = shlex.split(line.split("|")[0].split(">")[0])
    known, fields = build_parser().parse_known_args(words[1:])

    assert known.command == command
    assert known.takes_fields or not fields
    config.RunConfiguration.load(overrides=fields)


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"astra-accel {__version__}\n"
