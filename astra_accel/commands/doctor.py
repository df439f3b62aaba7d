"""`astra-accel doctor`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.paths import user_path


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        short="whether a run can start here, and if not, why",
        description="Tell what is installed and what is missing, what this machine has, which Accelerate "
        "configurations fit it, and with --config whether a run's file would start, without loading weights. Nothing "
        "is asked of the network unless --hub is given. Exit code 0: a run can start; 1: it can't.",
        examples=[
            ("this machine and installation", "astra-accel doctor"),
            ("would this run start?", "astra-accel doctor --config run.yaml"),
            ("for a script", "astra-accel doctor --config run.yaml --json | jq .problems"),
        ],
        prints_result=True,
    )
    doctor.add_argument("--config", type=user_path, metavar="FILE", help="YAML file of a run to look at as well")
    doctor.add_argument("--hub", action="store_true", help="ask whether the model hub (HF_ENDPOINT) can be reached")
    doctor.add_argument("--json", action="store_true", help="what was found as JSON")


def _doctor(known: argparse.Namespace, _: list[str]) -> int:
    from astra_accel.doctor.diagnosis import diagnose
    from astra_accel.doctor.text import as_text

    found = diagnose(known.config, ask_hub=known.hub)
    print(json.dumps(asdict(found), indent=2) if known.json else as_text(found))
    return 1 if found.problems else 0
