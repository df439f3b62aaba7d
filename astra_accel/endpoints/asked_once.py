"""Asks an endpoint nothing twice: the score of a text, for one, and its categories come from one question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.endpoints.answers import Answer, Messages, Question
from astra_accel.endpoints.client import EndpointClient
from astra_accel.endpoints.endpoint import Endpoint
from astra_accel.endpoints.journal import Journal

MOST_REMEMBERED = 16_384
"""Answers that are kept in memory where there is no journal, each with its question."""


class AskedOnce:
    """Asks an endpoint, and nothing twice: a journal has the answers or, without one, the memory has the latest.

    Args:
        endpoint: where the model answers.
        asked_of: what the model is in the run: target, or judge.
        sampling: further fields of each request: ``max_tokens``, ``temperature`` and the like.

    Raises:
        ImportError: the package openai is not installed.
    """

    def __init__(self, endpoint: Endpoint, asked_of: str, sampling: Mapping[str, Any] | None = None) -> None:
        self.endpoint = endpoint
        self._client, self._sampling = EndpointClient(endpoint, asked_of), dict(sampling or {})
        self._remembered: dict[str, Answer] = {}
        self._keeps_journal = False

    def keep_journal(self, journal: Journal) -> None:
        """Ask nothing that the journal has an answer to, and write down what is asked."""
        self._client.keep_journal(journal)
        self._keeps_journal = True
        self._remembered.clear()  # a journal that lacks these answers would have a resumed run ask for them again

    def check(self, content: Messages | str) -> Answer:
        """Ask a first question, so that a wrong address, key or model shows before anything else is done.

        Raises:
            EndpointError: there is no answer.
        """
        return self._client.check(Question(content, self._sampling))

    def ask(self, contents: Sequence[Messages | str]) -> list[Answer]:
        """The answers to several questions, in their order.

        Raises:
            EndpointError, OutageError, BudgetReached: as in :meth:`~astra_accel.endpoints.client.EndpointClient.ask`.
        """
        keys = [json.dumps(content) for content in contents]
        open_ = {key: content for key, content in zip(keys, contents, strict=True) if key not in self._remembered}
        answers = self._client.ask([Question(content, self._sampling) for content in open_.values()])
        known = self._remembered | dict(zip(open_, answers, strict=True))
        if not self._keeps_journal:
            lasting = {key: answer for key, answer in known.items() if answer.outcome != "failed"}
            self._remembered = dict(list(lasting.items())[-MOST_REMEMBERED:])
        return [known[key] for key in keys]
