"""A deployed assistant whose answers follow from the question alone, so that runs can be compared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.helpers.endpoint_server import Handler, Reply

ANSWERS = ("You damn fool.", "I see.", "What a nice day.", "Shit happens, you idiot.", "Tell me more.")


def number_of(request: dict[str, Any]) -> int:
    """A number that looks random and follows from what is asked, with which seed."""
    return int(hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest(), 16)


def answer(handler: Handler, request: dict[str, Any]) -> None:
    """One of the answers."""
    handler.say(ANSWERS[number_of(request) % len(ANSWERS)])


def is_check(request: dict[str, Any]) -> bool:
    """Whether it is the small question with which a client looks whether somebody answers."""
    return bool(request["max_tokens"] == 1)


def unreliable(every: int, misdeeds: list[Callable[[Handler], None]]) -> Reply:
    """Misbehaves at the first attempt at one of ``every`` questions, in each way in turn, and answers the second.

    Which ones follows from the question.
    """
    attempts: Counter[int] = Counter()

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        number = number_of(request)
        server: Any = handler.server
        with server.lock:
            attempts[number] += 1
            is_first = attempts[number] == 1
        if is_first and number % every == 0 and not is_check(request):
            misdeeds[number // every % len(misdeeds)](handler)
        else:
            answer(handler, request)

    return reply


def questions(asked: list[dict[str, Any]]) -> Counter[str]:
    """How often each question was asked, without the checks."""
    return Counter(json.dumps(request, sort_keys=True) for request in asked if not is_check(request))
