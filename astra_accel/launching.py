"""The Accelerate configurations that come with the package, and commands that start with one."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from astra_accel.errors import ConfigurationError
from astra_accel.paths import expanded

PACKAGE = Path(__file__).parent


def accelerate_configs() -> dict[str, Path]:
    """The Accelerate configurations that come with the package, by name."""
    # Beside the package in a checkout, inside it in an installed wheel.
    folders = [PACKAGE / "accelerate_configs", PACKAGE.parent / "accelerate_configs"]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def accelerate_config(name: str) -> Path:
    """The file of a named Accelerate configuration (``cpu_2``, ``multi_gpu``), or the path itself.

    Raises:
        ConfigurationError: there is no configuration of that name; lists the available ones.
    """
    if Path(name).is_file():
        return Path(name)
    files = accelerate_configs()
    if name not in files:
        raise ConfigurationError(
            f"--accelerate-config: unknown configuration {name!r}; expected a file or one of {', '.join(files)}"
        )
    return files[name]


def add_accelerate_config(command: argparse.ArgumentParser) -> None:
    """Add the argument that chooses a launch."""
    command.add_argument(
        "--accelerate-config",
        type=expanded,
        metavar="NAME",
        help=f"start `accelerate launch` with it: a file, or one of {', '.join(accelerate_configs())}; without it, one "
        "process",
    )


def start(module: str, job: list[str], accelerate_config_name: str | None) -> int:
    """Run a module's ``main`` on a job, here or with ``accelerate launch``."""
    if accelerate_config_name is not None:
        launcher: list[str] = [sys.executable, "-m", "accelerate.commands.launch"]
        launcher += ["--config_file", str(accelerate_config(accelerate_config_name))]
        # Replace this process, since it would intercept signals meant for the run.
        os.execv(sys.executable, [*launcher, "--module", module, *job])
    return importlib.import_module(module).main(job)
