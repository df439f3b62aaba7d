"""Starts a command's job: in its own process, or through a launcher of several."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from astra_accel.launch_configs import accelerate_config, accelerate_configs
from astra_accel.paths import expanded


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
