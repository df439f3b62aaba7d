"""The files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from astra_accel.files.atomic import write_atomically
from astra_accel.report.collect import Run
from astra_accel.report.markdown import render_markdown
from astra_accel.report.page import render_page
from astra_accel.report.verdicts import verdicts


def write_report(runs: Sequence[Run], page: Path, renewed_every: float | None = None) -> list[str]:
    """Write the page and, beside it, the summary in Markdown.

    Args:
        runs: what it is of.
        page: the HTML file.
        renewed_every: seconds after which an open page looks for a newer one; None where there will be none.

    Returns:
        What both say at the top: see :func:`~astra_accel.report.verdicts.verdicts`.
    """
    found = verdicts(runs)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, render_page(runs, renewed_every, found))
    write_atomically(page.with_suffix(".md"), render_markdown(runs, found))
    return found
