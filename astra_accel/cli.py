"""The command `astra-accel`: a thin layer over the library."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from astra_accel.config import ConfigurationError, RunConfiguration, check_resume

PACKAGE = Path(__file__).parent


def accelerate_config(name: str) -> Path:
    """The file of a named Accelerate configuration (``cpu_2``, ``multi_gpu``), or the path itself.

    Raises:
        ConfigurationError: there is none of that name; lists those that there are.
    """
    if Path(name).is_file():
        return Path(name)
    # Beside the package in a checkout, inside it in an installed wheel.
    folders = [PACKAGE / "accelerate_configs", PACKAGE.parent / "accelerate_configs"]
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name not in files:
        raise ConfigurationError(
            f"--accelerate-config: unknown configuration {name!r}; expected a file or one of {', '.join(files)}"
        )
    return files[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (2 for a mistake in what was asked).

    Raises:
        Preempted: a signal stopped the run; a ``SystemExit`` with code 75.
    """
    parser = argparse.ArgumentParser(
        prog="astra-accel", description="Train language models that red-team language models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a tester as a YAML file says",
        description="Train a tester as a YAML file says. Any field can be set by its section and name: "
        "--training.lr 1e-4.",
        usage="%(prog)s --config FILE [--accelerate-config NAME] [--resume CHECKPOINT|auto] "
        "[--SECTION.FIELD VALUE ...]",
        allow_abbrev=False,
    )
    train.add_argument("--config", help="YAML file with the sections of a run (examples/configs)")
    train.add_argument(
        "--resume", help="a checkpoint folder to go on from; auto: the newest in training.output_dir, if any"
    )
    train.add_argument(
        "--accelerate-config", help="name or file: start `accelerate launch` with it; without it, one process"
    )
    known, overrides = parser.parse_known_args(arguments)
    try:
        return _train(known, overrides)
    except (FileNotFoundError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(known: argparse.Namespace, overrides: list[str]) -> int:
    config = RunConfiguration.load(known.config, overrides)  # a mistake is told before processes start
    check_resume(config.training, known.resume)
    job: list[str] = [] if known.config is None else ["--config", known.config]
    job += [] if known.resume is None else ["--resume", known.resume]
    job += overrides
    if known.accelerate_config is not None:
        launcher: list[str] = [sys.executable, "-m", "accelerate.commands.launch"]
        launcher += ["--config_file", str(accelerate_config(known.accelerate_config))]
        # In place of this process, which would keep the signals that are meant for the run.
        os.execv(sys.executable, [*launcher, "--module", "astra_accel.training.run", *job])
    from astra_accel.training.run import main as run_main

    return run_main(job)


if __name__ == "__main__":
    sys.exit(main())
