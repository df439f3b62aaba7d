"""What a job asks endpoints: within its budget, and with a journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from astra_accel.config import BudgetConfiguration, RunConfiguration
from astra_accel.core.optional import KeepsJournal, offers
from astra_accel.distributed.collectives import gather_results, on_main
from astra_accel.endpoints.journal import Journal
from astra_accel.errors import ConfigurationError
from astra_accel.files.folders import empty
from astra_accel.registries import ENDPOINT_SCORERS
from astra_accel.scorers import needs_goal


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


def check_budget(config: RunConfiguration) -> None:
    """Find a budget that does not suffice for one training step.

    Raises:
        ConfigurationError: it does not.
        ValueError: the scorer's options are wrong; names the field.
    """
    if config.budget is None or config.budget.requests is None:
        return
    judge, width, depth = config.scorer, config.rollout.tree_width, config.rollout.tree_depth
    turns = config.training.num_episodes_per_experience * sum(width**level for level in range(1, depth + 1))
    # A turn is judged once as an exchange, and once as one text, which has no goal.
    judged = 0 if judge.name not in ENDPOINT_SCORERS else 1 if needs_goal(judge.name, judge.options) else 2
    needed = turns * ((config.target.endpoint is not None) + judged)
    if config.budget.requests < needed:
        raise ConfigurationError(
            f"budget.requests is {config.budget.requests}, but one training step asks {needed} questions; expected at "
            f"least as many"
        )


def _asks(one: Any) -> bool:
    """Whether a system or scorer asks an endpoint at all."""
    return bool(getattr(one, "asks_endpoint", True))
