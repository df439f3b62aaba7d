"""Questions to a model behind an OpenAI-compatible endpoint: concurrent, retried within limits, never guessed.

vLLM, SGLang, llama.cpp, Ollama, ``transformers serve`` and hosted services answer this way. The official client makes
the requests; what to retry, how long, and what counts as an answer is decided here, since it retries used-up quotas and
takes HTML for an answer.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

Messages = Sequence[Mapping[str, str]]
Outcome = Literal["answered", "refused", "filtered"]

LONGEST_WAIT = 120.0
"""Seconds between two attempts at most, also where the server asks for more."""
USED_UP = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of status 429 that don't pass by waiting."""
FILTER_CODES = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "moderation_blocked")
FILTER_WORDS = ("content management policy", "content filter", "content_filter", "safety system")
"""How services say with status 400 that they filtered the question."""


class EndpointError(RuntimeError):
    """An endpoint does not answer, or not in the way that was configured; the message says what it said."""


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        outcome: answered; refused, which some services report apart from text; or filtered, before or after the model.
        text: the answer, or the text of the refusal; empty if filtered, since partial text is no answer.
    """

    outcome: Outcome
    text: str = ""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers.

    Attributes:
        url: the base address, ending in ``/v1`` for most servers.
        model: the model's name there.
        api_key_env: the environment variable that holds the key. The key itself is never written or shown.
        headers: further HTTP headers.
        extra_body: further fields of each request.
        timeout: seconds to wait for a connection, and for each read.
        max_retries: further attempts after one that failed for a reason that may pass.
        max_concurrency: questions under way at once, over all processes of a run.

    Raises:
        ValueError: an address without a scheme or host, no model, a number out of range, or no key in the environment.
    """

    url: str
    model: str
    api_key_env: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    max_retries: int = 6
    max_concurrency: int = 16

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"endpoint is {self.url!r}, expected an address such as http://127.0.0.1:8000/v1")
        if not self.model:
            raise ValueError("model is empty, expected the name that the endpoint knows it by")
        if not self.timeout > 0 or self.max_retries < 0 or self.max_concurrency < 1:
            raise ValueError(
                f"timeout is {self.timeout}, max_retries {self.max_retries}, max_concurrency {self.max_concurrency}; "
                f"expected more than 0, at least 0, and at least 1"
            )
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ValueError(f"api_key_env is {self.api_key_env!r}, but no such environment variable is set")

    @property
    def key(self) -> str:
        """The key, or a word that servers without one ignore."""
        return "none" if self.api_key_env is None else os.environ[self.api_key_env]

    @property
    def own_concurrency(self) -> int:
        """The part of ``max_concurrency`` that this process may use, at least one question."""
        return max(1, self.max_concurrency // int(os.environ.get("WORLD_SIZE", "1")))


class EndpointClient:
    """Asks a model behind an endpoint.

    Args:
        endpoint: where it answers.

    Raises:
        ImportError: the package openai is not installed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError("an endpoint needs the package openai: pip install 'astra-accel[endpoint]'") from error
        self.endpoint = endpoint
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key,
            default_headers=dict(endpoint.headers),
            timeout=endpoint.timeout,
            max_retries=0,
            # A proxy of the environment would be asked for this machine's own servers, too.
            http_client=openai.DefaultHttpx2Client(trust_env=not _is_here(endpoint.url)),
        )

    def ask(self, questions: Sequence[Messages], *, max_tokens: int, **sampling: Any) -> list[Answer]:
        """Ask several questions at once, and return the answers in their order.

        Args:
            questions: the messages of each, with ``role`` and ``content``.
            max_tokens: the longest answer.
            sampling: further fields of the request, such as ``temperature`` and ``seed``.

        Raises:
            EndpointError: a question got no answer in all attempts, or the endpoint refuses such requests.
        """
        request = {"model": self.endpoint.model, "max_tokens": max_tokens, **sampling}
        pool = ThreadPoolExecutor(min(self.endpoint.own_concurrency, max(1, len(questions))))
        given_up = threading.Event()
        try:
            futures = [pool.submit(self._answer, {**request, "messages": list(each)}, given_up) for each in questions]
            return [future.result() for future in futures]
        finally:
            given_up.set()  # whatever waits for another attempt after an error need not
            pool.shutdown(wait=True, cancel_futures=True)

    def check(self) -> None:
        """Ask one short question, so that a wrong address, key or model shows before anything else is done.

        Raises:
            EndpointError: as :meth:`ask`.
        """
        self.ask([[{"role": "user", "content": "Hello."}]], max_tokens=1)

    def _answer(self, request: dict[str, Any], given_up: threading.Event) -> Answer:
        """Attempt a question until it is answered, or a reason does not pass."""
        for attempt in range(self.endpoint.max_retries + 1):
            try:
                completion = self._client.chat.completions.create(**request, extra_body=dict(self.endpoint.extra_body))
                return _read(completion)
            except (_Unreadable, json.JSONDecodeError) as error:
                reason, wait = f"it answered with something else than a completion ({error})", None
            except self._openai.APIStatusError as error:
                if _is_filtered(error):
                    return Answer("filtered")
                reason = f"it answered with status {error.status_code}: {self._shown(error.message)}"
                if not _may_pass(error):
                    raise EndpointError(f"{self._name}: {reason}") from None
                wait = error.response.headers.get("retry-after")
            except self._openai.APIConnectionError as error:
                reason, wait = f"no connection: {self._shown(repr(error.__cause__ or error))}", None
            if attempt < self.endpoint.max_retries and given_up.wait(_pause(attempt, wait)):
                break
        raise EndpointError(f"{self._name}: {reason} (attempt {attempt + 1} of {self.endpoint.max_retries + 1})")

    @property
    def _name(self) -> str:
        return f"{self.endpoint.url}, model {self.endpoint.model!r}"

    def _shown(self, text: str) -> str:
        """A server's message, shortened, without the key that some servers repeat."""
        return " ".join(text.replace(self.endpoint.key, "***").split())[:300]


class _Unreadable(ValueError):
    """A body that is no completion."""


def _read(completion: Any) -> Answer:
    """The answer in a completion.

    Raises:
        _Unreadable: it holds none. The client returns HTML as a string, ``null`` as None, and ``{}`` as a completion
            without choices.
    """
    choices = getattr(completion, "choices", None)
    if not choices:
        raise _Unreadable(f"{type(completion).__name__} without choices")
    choice = choices[0]
    message: Any = getattr(choice, "message", None)
    if choice.finish_reason == "content_filter":
        return Answer("filtered")
    if getattr(message, "refusal", None):
        return Answer("refused", str(message.refusal))
    content = getattr(message, "content", None)
    if not isinstance(content, str):
        raise _Unreadable(f"content is {type(content).__name__}, finish_reason {choice.finish_reason!r}")
    return Answer("answered", content)


def _is_filtered(error: Any) -> bool:
    if error.status_code != 400:
        return False
    text = str(error.message).lower()
    return error.code in FILTER_CODES or any(words in text for words in FILTER_WORDS)


def _may_pass(error: Any) -> bool:
    """Whether a status may go away by itself: too many requests, a conflict, a time-out, or the server's own error."""
    if error.code in USED_UP:
        return False
    return error.status_code in (408, 409, 425, 429) or error.status_code >= 500


def _pause(attempt: int, asked: str | None) -> float:
    """Seconds until the next attempt: as the server asks, else twice as long each time, with jitter."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(asked or "")))
    except ValueError:  # none, or a date
        return min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
