"""`astra-accel push`."""

from __future__ import annotations

import argparse
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.errors import ConfigurationError
from astra_accel.paths import user_path


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    push = add_command(
        commands,
        "push",
        _push,
        short="upload a run's tester or conversations to the Hugging Face hub",
        description="Upload a run's tester, its conversations, or both to the Hugging Face hub: to private "
        "repositories unless --public is given. Read docs/sharing.md before you publish a tester.",
        examples=[
            ("the tester, for yourself", "astra-accel push runs/demo --model me/tester"),
            ("the conversations as well", "astra-accel push runs/demo --model me/tester --dataset me/conversations"),
        ],
    )
    push.add_argument("path", type=user_path, metavar="RUN", help="the output folder of a run that has ended")
    push.add_argument("--model", metavar="OWNER/NAME", help="where the tester goes")
    push.add_argument("--dataset", metavar="OWNER/NAME", help="where the conversations go")
    push.add_argument("--public", action="store_true", help="for everybody to see")


def _push(known: argparse.Namespace, _: list[str]) -> int:
    if known.model is None and known.dataset is None:
        raise ConfigurationError("nothing to upload; expected --model OWNER/NAME, --dataset OWNER/NAME, or both")
    from astra_accel.sharing.hub import Repository
    from astra_accel.sharing.push import push

    private = not known.public
    addresses = push(
        known.path,
        model=None if known.model is None else Repository(known.model, "model", private),
        dataset=None if known.dataset is None else Repository(known.dataset, "dataset", private),
    )
    for address in addresses:
        print(f"uploaded to {address} ({'private' if private else 'public'} where it was not there before)")
    return 0
