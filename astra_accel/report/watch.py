"""A report that follows runs while they train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import process_time, sleep

from astra_accel.files.atomic import write_atomically
from astra_accel.files.run_status import read_status
from astra_accel.report.collect import Run, RunReader
from astra_accel.report.markdown import render_markdown
from astra_accel.report.page import render_page
from astra_accel.report.verdicts import verdicts


def write_report(runs: Sequence[Run], page: Path, renewed_every: float | None = None) -> list[str]:
    """Write the page, and the summary in Markdown next to it.

    Args:
        runs: the runs to show.
        page: the HTML file.
        renewed_every: seconds after which an open page reloads itself; None if there will be no newer one.

    Returns:
        The sentences at the top of both: see :func:`~astra_accel.report.verdicts.verdicts`.
    """
    found = verdicts(runs)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render_page(runs, renewed_every, found))
    write_atomically(page.with_suffix(".md"), render_markdown(runs, found))
    return found


REST = 9.0
"""The least seconds of rest per second of work: a watch takes at most a tenth of a core."""


def watch(readers: Sequence[RunReader], page: Path, every: float) -> None:
    """Write a report whenever its inputs change, until all runs are over or Ctrl-C.

    The last page does not reload itself. Runs with nothing to show yet are waited for.

    Args:
        readers: the readers of the runs.
        page: the HTML file.
        every: the least seconds between two checks.

    Raises:
        FileNotFoundError: a run is over and has nothing to report.
    """
    written: object = None
    said = ""
    print(f"the report is {page}; it is updated until the runs end (Ctrl-C: at once)", flush=True)
    try:
        while True:
            began = process_time()
            going_on = [reader for reader in readers if _goes_on(reader)]  # before reading, so that nothing is missed
            now = [reader.stamps() for reader in readers], bool(going_on)
            try:
                if now != written:
                    write_report([reader.read() for reader in readers], page, every if going_on else None)
                    written = now
            except FileNotFoundError as error:
                if not going_on:
                    raise
                said = _say_once(f"waiting: {error}", said)
            if not going_on:
                print("; ".join(f"{reader.path}: {_state(reader)}" for reader in readers))
                return
            sleep(max(every, REST * (process_time() - began)))
    except KeyboardInterrupt:
        if written is not None:
            write_report([reader.read() for reader in readers], page)
        print(f"no longer watched; {page} stays as it is")


def _goes_on(reader: RunReader) -> bool:
    """Whether more may come, also from a run that has not begun or a loop without a status."""
    status = read_status(reader.path)
    if status is None:
        return not reader.is_evaluation()
    return not status.over


def _state(reader: RunReader) -> str:
    status = read_status(reader.path)
    return "an evaluation" if status is None else status.state


def _say_once(text: str, said: str) -> str:
    if text != said:
        print(text, flush=True)
    return text
