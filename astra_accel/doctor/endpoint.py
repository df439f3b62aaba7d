"""Asks an endpoint what it can do: a few short questions."""

from __future__ import annotations

import time
from typing import Any

from astra_accel.config import TargetConfiguration


def inspect_endpoint(target: TargetConfiguration) -> str:
    """What an endpoint says: its models, whether it tells log-probs, and how long questions take, alone and at once.

    Raises:
        ImportError, ValueError: it can't be asked; a ``RuntimeError`` if it does not answer.
    """
    from astra_accel.endpoints.answers import Question
    from astra_accel.endpoints.client import SMALL_QUESTION, EndpointClient
    from astra_accel.endpoints.endpoint import Endpoint

    client = EndpointClient(Endpoint.from_configuration(target), "target")
    client.check()
    started = time.monotonic()
    client.check()
    alone = time.monotonic() - started
    number = client.endpoint.max_concurrency
    started = time.monotonic()
    client.ask([Question(SMALL_QUESTION.content, SMALL_QUESTION.sampling, place=str(row)) for row in range(number)])
    at_once = time.monotonic() - started
    return (
        f"{client.endpoint} answers in {alone:.2g} s, {number} questions at once in {at_once:.2g} s; "
        f"{_models(client)}; {'tells' if client.tells_logprobs() else 'does not tell'} log-probs"
    )


def _models(client: Any) -> str:
    names = client.model_names()
    if names is None:
        return "does not tell its models"
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"its models: {shown}"
