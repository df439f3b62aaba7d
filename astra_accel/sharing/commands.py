"""The commands `astra-accel export` and `astra-accel push`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from astra_accel.config import ConfigurationError


def add_commands(commands: Any) -> None:
    """Add both to the subcommands of a parser."""
    _add_export(commands)
    _add_push(commands)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="a run's tester as one model, or its conversations as a data set",
        description="Write a run's LoRA tester merged into its base, or the conversations of the run as a data set "
        "that datasets.load_dataset reads. Both with a card; nothing is uploaded.",
        allow_abbrev=False,
    )
    export.add_argument("path", type=Path, metavar="RUN", help="the output folder of a run")
    export.add_argument("--merged", type=Path, metavar="DIR", help="a new folder for the merged model")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the merged model's weights"
    )
    export.add_argument("--dataset", type=Path, metavar="DIR", help="a new folder for the conversations")
    export.add_argument("--jsonl", action="store_true", help="conversations as lines of JSON instead of parquet")
    export.set_defaults(run=_export, takes_fields=False)


def _add_push(commands: Any) -> None:
    push = commands.add_parser(
        "push",
        help="upload a run's tester or conversations to the Hugging Face hub",
        description="Upload a run's tester, its conversations, or both to the Hugging Face hub: to private "
        "repositories unless --public is given. Read docs/sharing.md before you publish a tester.",
        allow_abbrev=False,
    )
    push.add_argument("path", type=Path, metavar="RUN", help="the output folder of a run that has ended")
    push.add_argument("--model", metavar="OWNER/NAME", help="where the tester goes")
    push.add_argument("--dataset", metavar="OWNER/NAME", help="where the conversations go")
    push.add_argument("--public", action="store_true", help="for everybody to see")
    push.set_defaults(run=_push, takes_fields=False)


def _export(known: argparse.Namespace, _: list[str]) -> int:
    if known.merged is None and known.dataset is None:
        raise ConfigurationError("nothing to export; expected --merged DIR, --dataset DIR, or both")
    if known.dataset is not None:
        from astra_accel.sharing.dataset_card import export_dataset

        splits = export_dataset(known.path, known.dataset, jsonl=known.jsonl)
        turns = ", ".join(f"{split.num_rows} turns of {split.name}" for split in splits)
        print(f"the conversations are in {known.dataset}: {turns}")
    if known.merged is not None:
        from astra_accel.sharing.merged import export_merged

        difference = export_merged(known.path, known.merged, dtype=known.dtype)
        print(
            f"the merged model is in {known.merged}; its log-probs differ by at most {difference:.1g} from those of "
            f"the adapter"
        )
    return 0


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
