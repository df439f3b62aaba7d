"""Asks an endpoint what it can do: a few short questions."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

from astra_accel.config import ScorerConfiguration, TargetConfiguration


def inspect_target(target: TargetConfiguration) -> str:
    """What the endpoint of a target says, and whether its answers come with log-probs.

    Raises:
        ImportError, ValueError: it can't be asked; a ``RuntimeError`` if it does not answer.
    """
    from astra_accel.endpoints.client import EndpointClient
    from astra_accel.endpoints.endpoint import Endpoint

    client = EndpointClient(Endpoint.from_configuration(target), "target")
    return f"{_said(client)}; {'returns' if client.returns_logprobs() else 'returns no'} log-probs"


def inspect_scorer(scorer: ScorerConfiguration) -> str:
    """What the endpoint of a scorer says.

    Raises:
        ImportError, ValueError: it can't be asked; a ``RuntimeError`` if it does not answer.
    """
    from astra_accel.endpoints.client import EndpointClient
    from astra_accel.endpoints.endpoint import Endpoint

    given = {one.name: scorer.options[one.name] for one in fields(Endpoint) if scorer.options.get(one.name) is not None}
    api: Any = "moderations" if scorer.name == "moderation" else "chat"
    return _said(EndpointClient(Endpoint(**{**given, "url": scorer.options["endpoint"], "api": api}), "judge"))


def _said(client: Any) -> str:
    """How long questions take, alone and at once, and which models there are."""
    from astra_accel.endpoints.answers import Question
    from astra_accel.endpoints.client import SMALL_QUESTION

    client.check()
    started = time.monotonic()
    client.check()
    alone = time.monotonic() - started
    number = client.endpoint.concurrency
    started = time.monotonic()
    client.ask([Question(SMALL_QUESTION.content, SMALL_QUESTION.sampling, place=str(row)) for row in range(number)])
    at_once = time.monotonic() - started
    return (
        f"{client.endpoint} answers in {alone:.2g} s, {number} questions at once in {at_once:.2g} s; {_models(client)}"
    )


def _models(client: Any) -> str:
    names = client.model_names()
    if names is None:
        return "does not list its models"
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"its models: {shown}"
