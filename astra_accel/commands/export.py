"""`astra-accel export`."""

from __future__ import annotations

import argparse
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.errors import ConfigurationError
from astra_accel.paths import user_path


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    export = add_command(
        commands,
        "export",
        _export,
        short="a run's tester as one model, or its conversations as a data set",
        description="Write a run's LoRA tester merged into its base, or the conversations of the run as a data set "
        "that datasets.load_dataset reads. Both with a card; nothing is uploaded.",
        examples=[
            ("the tester with its adapter merged", "astra-accel export runs/demo --merged models/tester"),
            ("every conversation of training", "astra-accel export runs/demo --dataset data/demo"),
        ],
    )
    export.add_argument("path", type=user_path, metavar="RUN", help="the output folder of a run")
    export.add_argument("--merged", type=user_path, metavar="DIR", help="a new folder for the merged model")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the merged model's weights"
    )
    export.add_argument("--dataset", type=user_path, metavar="DIR", help="a new folder for the conversations")
    export.add_argument("--jsonl", action="store_true", help="conversations as lines of JSON instead of parquet")


def _export(known: argparse.Namespace, _: list[str]) -> int:
    if known.merged is None and known.dataset is None:
        raise ConfigurationError("nothing to export; expected --merged DIR, --dataset DIR, or both")
    from astra_accel.files.folders import check_writable

    for name, folder in (("--dataset", known.dataset), ("--merged", known.merged)):
        if folder is not None:
            check_writable(folder.parent, f"{name} {folder}: the folder")
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
