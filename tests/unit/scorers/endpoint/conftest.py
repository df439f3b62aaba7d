"""Servers that tests make scorers for; nobody waits between attempts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from astra_accel.endpoints import client
from tests.helpers.endpoint_server import Reply, endpoint_server


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "pause", lambda attempt, asked: 0.0)
    monkeypatch.setattr(client, "OUTAGE_PAUSE", 0.01)


@pytest.fixture
def made_for_server() -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Make a scorer, by its class, and its server, which answers as ``reply`` says after the check at the start."""
    with ExitStack() as stack:

        def make(scorer_class: type, model: str, checked: Reply, reply: Reply, **options: Any) -> tuple[Any, Any]:
            server = stack.enter_context(endpoint_server(checked))
            scorer = scorer_class(server.url, model, **options)
            server.asked.clear()
            server.reply = reply
            return scorer, server

        yield make
