"""The journal of what a job asks endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from astra_accel.config import BudgetConfiguration
from astra_accel.core.optional import KeepsJournal, offers
from astra_accel.distributed.collectives import gather_results, on_main
from astra_accel.endpoints.journal import Journal
from astra_accel.files.folders import empty


def keep_journal(
    asking: Sequence[Any],
    folder: Path,
    accelerator: Accelerator,
    budget: BudgetConfiguration | None,
    *,
    fresh: bool,
) -> Journal | None:
    """Let whatever asks an endpoint keep its journal in a folder. All processes must call it.

    Args:
        asking: systems and scorers.
        folder: of the journal.
        accelerator: the processes, of which each writes a file.
        budget: how much they may ask together.
        fresh: whether to forget what the folder holds.

    Raises:
        JournalError: there is a journal that can't be read.
    """
    keepers = [one for one in asking if offers(one, KeepsJournal) and _asks(one)]
    if not keepers:
        return None
    if fresh:
        on_main(accelerator, lambda: empty(folder, ("*",)))

    def opened() -> Journal:
        journal = Journal(folder, accelerator.process_index, accelerator.num_processes, budget)
        for one in keepers:
            one.keep_journal(journal)
        return journal

    # In two steps: what there is to read is known once all have made their files, and written what they asked before.
    journals: list[Any] = []
    gather_results(accelerator, lambda: journals.append(opened()))
    gather_results(accelerator, journals[0].join)
    return journals[0]


def _asks(one: Any) -> bool:
    """Whether a system or scorer asks an endpoint at all."""
    return bool(getattr(one, "asks_endpoint", True))
