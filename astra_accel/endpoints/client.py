"""Asks a model behind an OpenAI-compatible endpoint: many questions at once, retried within limits, never guessed.

vLLM, SGLang, llama.cpp, Ollama, ``transformers serve`` and hosted services answer this way. The official client makes
the requests; what to retry, how long, and what counts as an answer is decided here, since it retries used-up quotas and
takes HTML for an answer.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from astra_accel.endpoints.answers import (
    Answer,
    Question,
    UnreadableReply,
    is_filtered,
    may_pass,
    read_reply,
    request_of,
)
from astra_accel.endpoints.endpoint import Endpoint, EndpointError, OutageError
from astra_accel.endpoints.journal import BudgetReached, Journal, question_key
from astra_accel.endpoints.pace import Pace, pause

logger = logging.getLogger(__name__)

OUTAGE_PAUSE = 10.0
"""Seconds between two looks at an endpoint that answers nothing."""
SMALL_QUESTION = Question([{"role": "user", "content": "Hello."}], {"max_tokens": 1})

_kept: ContextVar[Journal | None] = ContextVar("kept", default=None)
"""The journal that new clients keep from their first question on."""


@contextmanager
def keeping(journal: Journal | None) -> Iterator[None]:
    """A context in which new clients keep a journal from the start.

    A scorer asks its first question while it is made, and a budget may not allow even that.
    """
    before = _kept.set(journal)
    try:
        yield
    finally:
        _kept.reset(before)


class _Attempt(Exception):
    """An attempt failed for a reason that may pass."""

    def __init__(self, reason: str, wait: str | None = None, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.busy = wait, busy


class EndpointClient:
    """Asks a model behind an endpoint.

    Args:
        endpoint: where the model answers.
        asked_of: what the model is in the run: target, or judge.

    Raises:
        ImportError: the package openai is not installed.
    """

    def __init__(self, endpoint: Endpoint, asked_of: str) -> None:
        try:
            import httpx2
            import openai
        except ImportError as error:
            raise ImportError("an endpoint needs the package openai: pip install 'astra-accel[endpoint]'") from error
        self.endpoint, self.asked_of = endpoint, asked_of
        self._openai, self._broken_off = openai, httpx2.HTTPError
        client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key,
            default_headers=endpoint.sent_headers,
            timeout=endpoint.timeout,
            max_retries=0,
            # A proxy of the environment would be asked for this machine's own servers, too.
            http_client=openai.DefaultHttpx2Client(trust_env=not endpoint.is_here),
        )
        self._client = client
        apis = {"chat": client.chat.completions, "completions": client.completions, "moderations": client.moderations}
        api: Any = apis[endpoint.api]
        self._create: Any = api.with_streaming_response.create
        limits = (endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._pace = Pace(*(None if limit is None else endpoint.own_part(limit) for limit in limits))
        self._journal = _kept.get()
        self._num_unrecorded = 0
        self._unrecorded_checks: list[tuple[Question, Answer]] = []

    def keep_journal(self, journal: Journal) -> None:
        """Ask nothing that the journal has an answer to, and write down what is asked."""
        self._journal = journal
        if self._num_unrecorded:
            journal.count_request(self.endpoint.model, self._num_unrecorded)
            self._num_unrecorded = 0
        for question, answer in self._unrecorded_checks:
            self._record(journal, question, answer)
        self._unrecorded_checks.clear()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask several questions at once, and return the answers in their order; equal ones are asked once.

        A question that gets no answer while others do has failed. While none gets one, this waits until the endpoint is
        back, and asks again.

        Raises:
            EndpointError: the endpoint refuses such requests.
            OutageError: it answers nothing, for longer than ``outage_limit``.
            BudgetReached: there is a budget, and it is used up.
        """
        keys = [self._key(question) for question in questions]
        known = {key: None if self._journal is None else self._journal.find(key) for key in keys}
        open_ = {key: question for key, question in zip(keys, questions, strict=True) if known[key] is None}
        while open_:
            known |= self._ask_at_once(open_)
            open_ = {key: question for key, question in open_.items() if _of(known, key).outcome == "failed"}
            if open_ and not self._waited_out(_of(known, next(iter(open_))).text):
                break
        return [_of(known, key) for key in keys]

    def check(self, question: Question = SMALL_QUESTION) -> Answer:
        """Ask one short question, so that a wrong address, key or model shows before anything else is done.

        Where the budget is used up, the journal's answer to it will do: a run that has all its answers needs no more.

        Raises:
            EndpointError: there is no answer.
            BudgetReached: the budget is used up, and the journal has no answer.
        """
        try:
            answer = self._answer(question, threading.Event())
        except BudgetReached:
            known = None if self._journal is None else self._journal.find(self._key(question))
            if known is None:
                raise
            return known
        if answer.outcome == "failed":
            raise EndpointError(answer.text)
        if self._journal is None:
            self._unrecorded_checks.append((question, answer))
        else:
            self._record(self._journal, question, answer)
        return answer

    def model_names(self) -> list[str] | None:
        """The models that the endpoint lists; None if it lists none."""
        try:
            return [str(model.id) for model in self._client.models.list().data]
        except (self._openai.OpenAIError, self._broken_off, ValueError, AttributeError, TypeError):
            return None  # many servers have no such list, or one of another form

    def returns_logprobs(self) -> bool:
        """Whether answers come with log-probs if they are asked for."""
        wanted: dict[str, Any] = {"logprobs": True} if self.endpoint.api == "chat" else {"logprobs": 1}
        try:
            completion = json.loads(self._body({**self._request(SMALL_QUESTION), **wanted}))
            return bool(completion["choices"][0].get("logprobs"))
        except (self._openai.OpenAIError, self._broken_off, ValueError, LookupError, AttributeError, TypeError):
            return False

    def _ask_at_once(self, questions: Mapping[str, Question]) -> dict[str, Answer]:
        pool = ThreadPoolExecutor(min(self.endpoint.own_part(self.endpoint.concurrency), len(questions)))
        given_up = threading.Event()

        def answered(question: Question) -> Answer:
            try:
                answer = self._answer(question, given_up)
            except Exception:
                given_up.set()  # before anybody looks: no further question is sent
                raise
            was_given_up = answer.outcome == "failed" and given_up.is_set()
            if self._journal is not None and not was_given_up:
                self._record(self._journal, question, answer)
            return answer

        try:
            futures = {key: pool.submit(answered, question) for key, question in questions.items()}
            return {key: future.result() for key, future in futures.items()}
        finally:
            given_up.set()  # whatever waits for another attempt after an error need not
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, question: Question, given_up: threading.Event) -> Answer:
        """Attempt a question until it is answered, or a reason does not pass."""
        request, reason = self._request(question), "the questions were given up"
        attempts = self.endpoint.max_retries + 1
        for attempt in range(attempts):
            if self._pace.wait(given_up):
                break
            try:
                answer = self._attempt(request)
            except _Attempt as failed:
                reason, seconds = f"{failed} (attempt {attempt + 1} of {attempts})", pause(attempt, failed.wait)
                if failed.busy:
                    self._pace.hold(seconds)
                if attempt + 1 < attempts and given_up.wait(seconds):
                    break
            else:
                self._pace.spent(answer.prompt_tokens + answer.completion_tokens)
                return answer
        return Answer("failed", f"{self.endpoint}: {reason}")

    def _attempt(self, request: Mapping[str, Any]) -> Answer:
        """Send a request once.

        Raises:
            _Attempt: it failed, and may not fail again.
            EndpointError: the endpoint refuses such requests.
        """
        if self._journal is None:
            self._num_unrecorded += 1
        else:
            self._journal.count_request(self.endpoint.model)
        try:
            return read_reply(json.loads(self._body(request)), self.endpoint.api)
        except ValueError as error:
            expected = "moderation" if self.endpoint.api == "moderations" else "completion"
            raise _Attempt(f"it answered with something else than a {expected} ({error})") from None
        except self._openai.APIStatusError as error:
            status, code, message = error.status_code, error.code, str(error.message)
            if is_filtered(status, code, message):
                return Answer("filtered")
            reason = f"it answered with status {status}: {self._shown(message)}"
            if not may_pass(status, code):
                raise EndpointError(f"{self.endpoint}: {reason}") from None
            wait = error.response.headers.get("retry-after")
            raise _Attempt(reason, wait, busy=status in (429, 503)) from None
        except (self._openai.APIConnectionError, self._broken_off) as error:
            raise _Attempt(f"no connection: {self._shown(repr(error.__cause__ or error))}") from None

    def _body(self, request: Mapping[str, Any]) -> bytes:
        """The body of a reply, which may take as long as one attempt: a time-out alone is for each read.

        Raises:
            UnreadableReply: it takes longer.
        """
        deadline, body = time.monotonic() + self.endpoint.timeout, bytearray()
        needed = {name: request[name] for name in ("model", "messages", "prompt", "input") if name in request}
        with self._create(**needed, extra_body={**request, **self.endpoint.extra_body}) as response:
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > deadline:
                    raise UnreadableReply(f"not whole after {self.endpoint.timeout:g} s")
        return bytes(body)

    def _record(self, journal: Journal, question: Question, answer: Answer) -> None:
        request, key = self._request(question), self._key(question)
        journal.write(key, self.asked_of, question.place, request, answer, goal=question.goal)

    def _request(self, question: Question) -> dict[str, Any]:
        return request_of(question, self.endpoint.model, self.endpoint.api, self.endpoint.omit)

    def _key(self, question: Question) -> str:
        request = {**self._request(question), **self.endpoint.extra_body}
        return question_key(self.asked_of, self.endpoint.url, request, question.place)

    def _waited_out(self, reason: str) -> bool:
        """Wait until an endpoint that left questions unanswered is back; returns whether it was gone at all.

        Raises:
            OutageError: it did not come back.
        """
        begun, limit = time.monotonic(), self.endpoint.outage_limit
        gone = False
        while True:
            try:
                self._attempt(self._request(SMALL_QUESTION))
            except _Attempt as failed:
                if not gone:
                    logger.warning("%s The endpoint answers nothing: waiting for at most %g s.", reason, limit)
                gone = True
                if time.monotonic() - begun >= limit:
                    raise OutageError(
                        f"{self.endpoint}: no answer for {time.monotonic() - begun:.0f} s, at last: {failed}"
                    ) from None
                time.sleep(min(OUTAGE_PAUSE, limit))
            else:
                if gone:
                    logger.warning("%s answers again after %.0f s.", self.endpoint, time.monotonic() - begun)
                return gone

    def _shown(self, text: str) -> str:
        """A server's message, shortened, without the key that some servers repeat."""
        return " ".join(self.endpoint.without_secrets(text).split())[:300]


def _of(answers: Mapping[str, Answer | None], key: str) -> Answer:
    answer = answers[key]
    assert answer is not None
    return answer
