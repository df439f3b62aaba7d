"""Every question to an endpoint and its answer, on disk: a run that is resumed asks nothing twice, and what it may
still ask is known.

Each process writes a file of its own, ``rank-N.sqlite``, and reads those of the others that are there when it joins.
An answer is written before it is used, and a request is counted before it is sent, so a process that is killed loses no
more than the questions under way.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from astra_accel.config import BudgetConfiguration
from astra_accel.core.prompt import Goal
from astra_accel.endpoints.answers import Answer
from astra_accel.endpoints.journal_file import JournalError, naming, opened
from astra_accel.errors import Interrupted
from astra_accel.files.text import valid_text

__all__ = ["BudgetReached", "Journal", "JournalError", "Spent", "question_key"]


class BudgetReached(Interrupted):
    """No more may be asked; the message says of what there is no more."""

    exit_code = 0
    in_order = True


class Spent(NamedTuple):
    """What was asked of a model so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: Spent) -> Spent:
        """The sum."""
        return Spent(*(one + more for one, more in zip(self, other, strict=True)))


class Journal:
    """The journal of one process.

    Args:
        folder: the folder of all processes' journals; None keeps this one in memory.
        process, num_processes: which process of how many keeps it.
        budget: how much all processes together may ask; None is no limit.

    Raises:
        JournalError: the file can't be read; names it. So do the methods, which read and write files.
    """

    def __init__(
        self,
        folder: Path | None = None,
        process: int = 0,
        num_processes: int = 1,
        budget: BudgetConfiguration | None = None,
    ) -> None:
        self._lock, self._budget = threading.Lock(), budget
        self._process, self._num_processes = process, num_processes
        self._allowed: dict[str, float] = {}
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = None if folder is None else folder / f"rank-{process}.sqlite"
        self._own = opened(self._file)
        self._others: dict[Path, sqlite3.Connection] = {}

    def join(self) -> None:
        """Read the files of the others, and find out what this process may still ask.

        All processes have made theirs, and nobody asks before all have joined.
        """
        found = [] if self._folder is None else sorted(self._folder.glob("rank-*.sqlite"))
        self._others = {file: opened(file, read_only=True) for file in found if file != self._file}
        budget = self._budget
        if budget is None:
            return
        spent = self.spent()
        total = Spent()
        for one in spent.values():
            total = total.plus(one)
        left: dict[str, float] = {}
        if budget.requests is not None:
            # Whole requests: the first processes get those that remain.
            each, rest = divmod(max(0, budget.requests - total.requests), self._num_processes)
            left["requests"] = each + (self._process < rest)
        if budget.tokens is not None:
            left["tokens"] = (budget.tokens - total.prompt_tokens - total.completion_tokens) / self._num_processes
        if budget.cost is not None:
            left["cost"] = (budget.cost - _cost(budget, spent)) / self._num_processes
        self._allowed = left

    def find(self, key: str) -> Answer | None:
        """The answer to a question that was asked before; None if there was none."""
        with self._lock:
            for file, connection in self._files():
                with naming(file):
                    row = connection.execute(
                        "SELECT outcome, answer, prompt_tokens, completion_tokens FROM questions WHERE key = ?", (key,)
                    ).fetchone()
                if row is not None and row[0] != "failed":
                    return Answer(*row)
        return None

    def write(
        self,
        key: str,
        asked_of: str,
        place: str,
        request: Mapping[str, Any],
        answer: Answer,
        *,
        goal: Goal | None = None,
    ) -> None:
        """Write a question and its answer, with the goal of its conversation, and count the tokens."""
        model, tokens = str(request["model"]), (answer.prompt_tokens, answer.completion_tokens)
        of_goal = [None, None] if goal is None else [goal.text, goal.category]
        of_goal = [text and valid_text(text) for text in of_goal]
        row = (key, asked_of, model, place, _json(request), answer.outcome, answer.text, *tokens, time.time(), *of_goal)
        with self._lock:
            with naming(self._file), self._own:
                self._own.execute(f"INSERT OR REPLACE INTO questions VALUES ({', '.join('?' * len(row))})", row)
                self._add(model, Spent(0, *tokens))
            self._take(model, Spent(0, *tokens))

    def count_request(self, model: str, number: int = 1) -> None:
        """Count requests that are about to be sent.

        Raises:
            BudgetReached: they may not be.
        """
        with self._lock:
            # Several at once were sent before there was a journal.
            for what, left in self._allowed.items():
                if left <= 0:
                    raise BudgetReached(self._reason(what))
            with naming(self._file), self._own:
                self._add(model, Spent(number))
            self._take(model, Spent(number))

    def spent(self) -> dict[str, Spent]:
        """What was asked of each model, by all processes whose files were there at the beginning and by this one."""
        found: dict[str, Spent] = {}
        with self._lock:
            for file, connection in self._files():
                with naming(file):
                    rows = connection.execute("SELECT * FROM spent").fetchall()
                for model, *counts in rows:
                    found[model] = found.get(model, Spent()).plus(Spent(*counts))
        return found

    def close(self) -> None:
        """Close the files."""
        for _, connection in self._files():
            connection.close()

    def _files(self) -> list[tuple[Path | None, sqlite3.Connection]]:
        return [(self._file, self._own), *self._others.items()]

    def _add(self, model: str, more: Spent) -> None:
        self._own.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT(model) DO UPDATE SET requests = requests + "
            "excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens",
            (model, *more),
        )

    def _take(self, model: str, more: Spent) -> None:
        """Take what was spent from what this process may still ask."""
        budget = self._budget
        if budget is None:
            return
        spent = {
            "requests": more.requests,
            "tokens": more.prompt_tokens + more.completion_tokens,
            "cost": _cost(budget, {model: more}) if budget.cost is not None else 0.0,
        }
        for what in self._allowed:
            self._allowed[what] -= spent[what]

    def _reason(self, what: str) -> str:
        shared = f", of which each of {self._num_processes} processes had a part" if self._num_processes > 1 else ""
        return f"budget.{what} is used up ({getattr(self._budget, what):g}{shared})"


def question_key(asked_of: str, url: str, request: Mapping[str, Any], place: str) -> str:
    """What tells a question from all others: who is asked, where, what with which sampling, and the place in a run."""
    return hashlib.sha256(_json([asked_of, url, request, place]).encode()).hexdigest()


def _cost(budget: BudgetConfiguration, spent: Mapping[str, Spent]) -> float:
    prices = {model: budget.prices[model] for model in spent if model in budget.prices}
    return sum(
        (price.input * spent[model].prompt_tokens + price.output * spent[model].completion_tokens) / 1e6
        for model, price in prices.items()
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
