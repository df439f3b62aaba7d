"""`astra-accel report`."""

from __future__ import annotations

import argparse
from typing import Any

from astra_accel.commands.help import add_command
from astra_accel.errors import ConfigurationError
from astra_accel.paths import user_path

EVERY = 10.0


def add_commands(commands: Any) -> None:
    """Register the command with argparse."""
    report = add_command(
        commands,
        "report",
        _report,
        short="one HTML file of runs: figures, pictures, conversations",
        description="Write one HTML file that needs nothing else: what was run, figures with intervals, pictures, "
        "conversations to look through, settings; and a summary in Markdown next to it. With --watch it is written "
        "again while the runs train, and the open page renews itself.",
        examples=[
            ("a run, to report.html in its folder", "astra-accel report runs/demo"),
            ("two runs side by side", "astra-accel report runs/demo runs/other --output both.html"),
            ("look on while a run trains; ends with it, or by Ctrl-C", "astra-accel report runs/demo --watch"),
        ],
    )
    report.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="the folder of a run, or of an evaluation"
    )
    report.add_argument(
        "--output", type=user_path, metavar="FILE", help="the HTML file; left out, report.html in the first run"
    )
    report.add_argument("--watch", action="store_true", help="write it again whenever the runs' files changed")
    report.add_argument(
        "--every", type=float, metavar="SECONDS", help=f"with --watch: look that often, at most (default: {EVERY:g})"
    )


def _report(known: argparse.Namespace, _: list[str]) -> int:
    from astra_accel.files.folders import check_file_writable
    from astra_accel.report.collect import RunReader
    from astra_accel.report.watch import watch, write_report

    if known.every is not None and not known.watch:
        raise ConfigurationError("--every is given without --watch; expected both, or neither")
    every = EVERY if known.every is None else known.every
    if not every > 0:
        raise ConfigurationError(f"--every is {every:g}; expected seconds, more than 0")
    readers = [RunReader(path) for path in known.runs]
    page = known.output or known.runs[0] / "report.html"
    if known.output is not None or page.parent.is_dir():
        check_file_writable(page, "--output")
    if known.watch:
        watch(readers, page, every)
        return 0
    runs = [reader.read() for reader in readers]
    verdicts = write_report(runs, page)
    for run in runs:
        if run.num_skipped:
            print(f"{run.path}: {run.num_skipped} lines of metrics.jsonl could not be read and are left out")
    print(f"the report is {page}, its summary {page.with_suffix('.md')}")
    if verdicts:
        print("\n".join(verdicts), f"Read more in {page}.")
    return 0
