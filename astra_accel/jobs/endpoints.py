"""What a job asks endpoints: within its budget, and with a journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from astra_accel.config import BudgetConfiguration, RunConfiguration, ScorerConfiguration
from astra_accel.core.optional import KeepsJournal, offers
from astra_accel.distributed.collectives import gather_results, on_main
from astra_accel.endpoints.client import EndpointClient, keeping
from astra_accel.endpoints.journal import Journal
from astra_accel.errors import ConfigurationError
from astra_accel.files.folders import empty
from astra_accel.registries import ENDPOINT_SCORERS
from astra_accel.scorers import check_scorer, needs_goal

T = TypeVar("T")


class JobJournal:
    """The journal of a job: opened before the first question, so that what earlier launches asked counts for it.

    A job that begins anew has asked nothing before, and may still turn out to be a mistake. Its journal is made, and an
    earlier one deleted, once everything else is sure.

    Args:
        accelerator: the processes, of which each writes a file.
        budget: how much the processes may ask together; None is no limit.
        folder: the folder of the journal that the job goes on with; None if it begins anew.
    """

    def __init__(
        self, accelerator: Accelerator, budget: BudgetConfiguration | None = None, folder: Path | None = None
    ) -> None:
        self._accelerator, self._budget, self._folder = accelerator, budget, folder
        self._journal: Journal | None = None

    def check(self, target: EndpointClient | None, scorers: Sequence[ScorerConfiguration]) -> None:
        """Open the journal if the job goes on with one and asks an endpoint, and ask the target a first question.

        All processes must call it.

        Args:
            target: the client that asks the target, if it is behind an endpoint.
            scorers: the scorers that :meth:`built` will make.

        Raises:
            JournalError: there is a journal that can't be read.
            EndpointError: the target does not answer.
            BudgetReached: the budget does not allow the question, which has never been answered.
        """
        if self._folder is not None and (target is not None or any(map(_may_ask, scorers))):
            self._journal = self._opened(self._folder, [] if target is None else [target])
        if target is not None:
            on_main(self._accelerator, target.check)

    def built(self, build: Callable[[], T]) -> T:
        """What a function builds on each process, whose questions meanwhile stand in the journal.

        All processes must call it; if it fails on one, it fails on all.
        """
        found: list[T] = []
        with keeping(self._journal):
            gather_results(self._accelerator, lambda: found.append(build()))
        return found[0]

    def keep(self, asking: Sequence[Any], folder: Path, *, fresh: bool) -> None:
        """Let whatever asks an endpoint keep the journal. All processes must call it.

        Args:
            asking: the systems and scorers of the job.
            folder: the folder of the journal.
            fresh: whether to delete what the folder holds.

        Raises:
            JournalError: there is a journal that can't be read.
        """
        keepers = [one for one in asking if offers(one, KeepsJournal) and _asks(one)]
        if not keepers:
            return
        if self._journal is None:
            if fresh:
                on_main(self._accelerator, lambda: empty(folder, ("*",)))
            self._journal = self._opened(folder, keepers)
            return
        for one in keepers:
            one.keep_journal(self._journal)

    def _opened(self, folder: Path, keepers: Sequence[Any]) -> Journal:
        journals: list[Journal] = []

        def begin() -> None:
            journal = Journal(folder, self._accelerator.process_index, self._accelerator.num_processes, self._budget)
            for one in keepers:
                one.keep_journal(journal)
            journals.append(journal)

        # In two steps: what there is to read is known once all have made their files, and written what they asked.
        gather_results(self._accelerator, begin)
        gather_results(self._accelerator, journals[0].join)
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


def _may_ask(scorer: ScorerConfiguration) -> bool:
    """Whether a scorer of this class asks an endpoint."""
    return offers(check_scorer(scorer.name, scorer.options), KeepsJournal)
