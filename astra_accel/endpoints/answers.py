"""Questions to a model behind an endpoint, and what the replies of servers amount to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from astra_accel.core.prompt import Goal
from astra_accel.files.text import valid_text

Messages = Sequence[Mapping[str, str]]
Api = Literal["chat", "completions", "moderations"]
"""What a server answers to: a conversation, a running text to be continued, or a text to be moderated."""

FILTER_CODES = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "moderation_blocked")
FILTER_WORDS = ("content management policy", "content filter", "content_filter", "safety system")
"""How services say with status 400 that they filtered the question."""
USED_UP = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of status 429 that don't pass by waiting."""


class UnreadableReply(ValueError):
    """A reply of status 200 that is not what was asked for."""


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        content: the messages of a conversation, each with ``role`` and ``content``; or a running text to be continued,
            or to be moderated.
        sampling: further fields of the request: ``max_tokens``, ``temperature``, ``seed`` and the like.
        place: where in a run the question is asked, so that equal questions of different episodes are asked each.
        goal: the goal of the conversation, if it has one. The journal has it, and the model is not told.
    """

    content: Messages | str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    goal: Goal | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        outcome: answered; refused, which some services report apart from text; filtered, before or after the model; or
            failed, if there was no answer in all attempts at an endpoint that answers other questions.
        text: the answer, the text of the refusal, or why it failed; empty if filtered, since partial text is no answer.
            Of a moderation, the scores of its categories as JSON.
        prompt_tokens, completion_tokens: tokens as the service counts them; 0 if it does not.
    """

    outcome: Literal["answered", "refused", "filtered", "failed"]
    text: str = ""
    prompt_tokens: int = field(default=0, compare=False)
    completion_tokens: int = field(default=0, compare=False)


def request_of(question: Question, model: str, api: Api, omit: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a request. Of a conversation, an API that takes one text gets the last message."""
    text = question.content if isinstance(question.content, str) else question.content[-1]["content"]
    if api == "moderations":
        return {"model": model, "input": text}
    sampling = {name: value for name, value in question.sampling.items() if name not in omit}
    if api == "completions":
        return {"model": model, "prompt": text, **sampling}
    return {"model": model, "messages": list(question.content), **sampling}


def read_reply(reply: Any, api: Api) -> Answer:
    """The answer in a reply, as JSON.

    Raises:
        UnreadableReply: it holds none.
    """
    return read_moderation(reply) if api == "moderations" else read_completion(reply)


def read_completion(completion: Any) -> Answer:
    """The answer in a completion, as JSON.

    Raises:
        UnreadableReply: it holds none.
    """
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnreadableReply(f"{type(completion).__name__} without choices")
    choice, usage = choices[0], completion.get("usage")
    tokens = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    if choice.get("finish_reason") == "content_filter":
        return Answer("filtered", "", *tokens)
    if message.get("refusal"):
        return Answer("refused", valid_text(str(message["refusal"])), *tokens)
    content = message.get("content") if "text" not in choice else choice["text"]
    if not isinstance(content, str):
        raise UnreadableReply(f"content is {type(content).__name__}, finish_reason {choice.get('finish_reason')!r}")
    return Answer("answered", valid_text(content), *tokens)


def read_moderation(moderation: Any) -> Answer:
    """The scores of the categories in the moderation of one text. Whether they are numbers is for the reader to check.

    Raises:
        UnreadableReply: it holds none.
    """
    results = moderation.get("results") if isinstance(moderation, dict) else None
    if not isinstance(results, list):
        raise UnreadableReply(f"{type(moderation).__name__} without results")
    if len(results) != 1:
        raise UnreadableReply(f"{len(results)} results for one text")
    scores = results[0].get("category_scores") if isinstance(results[0], dict) else None
    if not isinstance(scores, dict):
        raise UnreadableReply(f"category_scores is {type(scores).__name__}")
    usage = moderation.get("usage")
    return Answer("answered", json.dumps(scores), _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def is_filtered(status: int, code: str | None, message: str) -> bool:
    """Whether an error says that the question was filtered."""
    return status == 400 and (code in FILTER_CODES or any(words in message.lower() for words in FILTER_WORDS))


def may_pass(status: int, code: str | None) -> bool:
    """Whether a status may go away by itself: too many requests, a conflict, a time-out, or the server's own error."""
    return code not in USED_UP and (status in (408, 409, 425, 429) or status >= 500)


def _count(usage: Any, name: str) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else 0
