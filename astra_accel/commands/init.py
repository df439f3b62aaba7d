"""`astra-accel init`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from astra_accel.algorithms import ALGORITHMS
from astra_accel.commands.help import add_command
from astra_accel.errors import ConfigurationError
from astra_accel.paths import expanded

SCREEN = "-"


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    init = add_command(
        commands,
        "init",
        _init,
        short="write a configuration to start from",
        description="Write a YAML file that holds a run's usual fields, or every one, each with what it means, what it "
        "may be and its default. An existing file is kept.",
        examples=[
            ("the embedded small model against itself, with DPO", "astra-accel init run.yaml"),
            (
                "a tester on one model against another, with GRPO",
                "astra-accel init run.yaml --algorithm grpo --model meta-llama/Llama-3.2-1B-Instruct \\\n"
                "      --target ./models/candidate",
            ),
            ("every field there is, to look through", "astra-accel init - --full | less"),
        ],
        prints_result=True,
    )
    init.add_argument(
        "file", nargs="?", type=expanded, default="run.yaml", metavar="FILE", help="default: run.yaml; -: the screen"
    )
    init.add_argument("--algorithm", choices=list(ALGORITHMS), help="which algorithm trains the tester")
    init.add_argument(
        "--model", metavar="MODEL", help="what the tester begins as: a hub id, a folder, embedded or tiny"
    )
    init.add_argument("--target", metavar="MODEL", help="the model under test; left out, that of the tester")
    init.add_argument("--full", action="store_true", help="every field, not only the usual ones")
    init.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _init(known: argparse.Namespace, _: list[str]) -> int:
    from astra_accel.commands.starter import starter
    from astra_accel.config import RunConfiguration

    overrides: list[str] = []
    for field, value in (
        ("algorithm.name", known.algorithm),
        ("tester.path", known.model),
        ("target.path", known.target or known.model),
    ):
        overrides += [] if value is None else [f"--{field}", value]
    text = starter(RunConfiguration.load(overrides=overrides), full=known.full)
    if known.file == SCREEN:
        print(text, end="")
        return 0
    _write(Path(known.file), text, known.overwrite)
    print(f"wrote {known.file}; next: astra-accel doctor --config {known.file}")
    return 0


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write a new file, or overwrite an existing one if asked to.

    Raises:
        ConfigurationError: the file already exists, or can't be written.
    """
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} already exists; expected another name, or --overwrite") from error
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error}") from error
