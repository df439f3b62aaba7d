"""A target that answers behind an endpoint, where texts go in and out and nothing else is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from astra_accel.config import RolloutConfiguration
from astra_accel.core.outcomes import FILTERED, TARGET_ERROR
from astra_accel.core.seeding import derive_seed
from astra_accel.endpoints.answers import Answer, Messages, Question
from astra_accel.endpoints.client import EndpointClient
from astra_accel.files.text import valid_text
from astra_accel.methods.ast.transcript import Segment, Transcript, joined_text
from astra_accel.methods.ast.views import Views
from astra_accel.models.decoding.token_sampling import Seed
from astra_accel.models.roles import RoleFiles

NO_LOGPROBS = "the target is behind an endpoint, which returns no log-probs; expected naturalness_model 'baseline'"
LARGEST_SEED = 2**31
"""Servers take 32 bits at least, some of them with a sign."""


class EndpointTarget:
    """Asks a target for its responses.

    To a chat API, the probes are the user's messages (the first one follows the prompt in the same message) and the
    responses the assistant's. To a completions API the conversation is one running text. An exchange that was filtered
    is not repeated to the target, as an application would not; the tester still sees it.

    Args:
        client: asks the model.
        views: makes segments of texts.
        rollout: format, sampling and context limit.
    """

    def __init__(self, client: EndpointClient, views: Views, rollout: RolloutConfiguration) -> None:
        self.client, self._views, self._rollout = client, views, rollout
        self._instruction = rollout.target_instruction

    @classmethod
    def from_files(cls, files: RoleFiles, views: Views, rollout: RolloutConfiguration) -> EndpointTarget | None:
        """The target of a run's models, if it is behind an endpoint."""
        return None if files.endpoint is None else cls(files.endpoint, views, rollout)

    def responses(self, states: Sequence[Transcript], seeds: Sequence[Seed]) -> list[Segment]:
        """A response to each state, which ends with a probe; equal states with other seeds are asked each."""
        questions = [self._question(*pair) for pair in zip(states, seeds, strict=True)]
        answers = self.client.ask(questions)
        return [self._segment(*pair) for pair in zip(answers, states, strict=True)]

    def _question(self, state: Transcript, seed: Seed) -> Question:
        sampling = self._rollout.target
        asked = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": derive_seed(*seed) % LARGEST_SEED,
        }
        if sampling.top_k:
            asked["top_k"] = sampling.top_k
        segments = self._fitting(heard(state.segments))
        is_chat = self.client.endpoint.api == "chat"
        content = self._messages(segments, state.separator) if is_chat else valid_text(joined_text(segments, ""))
        return Question(content, asked, place="/".join(map(str, seed)), goal=state.goal)

    def _messages(self, segments: Sequence[Segment], separator: str) -> Messages:
        """The conversation as messages: all before the first response is the first of the user."""
        messages = [] if self._instruction is None else [{"role": "system", "content": self._instruction}]
        said: list[Segment] = []
        for segment in segments:
            if segment.role != "response":
                said.append(segment)
                continue
            messages += [_message("user", said, separator), _message("assistant", [segment], separator)]
            said = []
        return [*messages, _message("user", said, separator)]

    def _fitting(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """The newest segments that ``rollout.context_limit`` allows, counted in the tester's tokens."""
        limit = self._rollout.context_limit
        if limit is None:
            return segments
        room = limit - self._rollout.target.max_new_tokens
        exchanges = [place + 1 for place, segment in enumerate(segments) if segment.role == "response"]
        for start in (0, *exchanges):
            if sum(len(segment.tester_ids) for segment in segments[start:]) <= room:
                break
        return segments[start:]

    def _segment(self, answer: Answer, state: Transcript) -> Segment:
        if answer.outcome in ("filtered", "failed"):
            empty = self._views.segment("response", "", state)
            return replace(empty, outcome=FILTERED if answer.outcome == "filtered" else TARGET_ERROR)
        text = valid_text(answer.text)
        if state.separator == "" and self.client.endpoint.api == "chat" and text[:1].strip():
            text = f" {text}"  # a message becomes part of a running text
        return replace(self._views.segment("response", text, state), outcome=answer.outcome)


def heard(segments: Sequence[Segment]) -> list[Segment]:
    """The conversation without the exchanges that were filtered."""
    kept: list[Segment] = []
    for segment in segments:
        if segment.role == "response" and segment.outcome == FILTERED:
            kept.pop()
        else:
            kept.append(segment)
    return kept


def _message(role: str, said: Sequence[Segment], separator: str) -> dict[str, str]:
    text = valid_text(joined_text(said, separator))
    return {"role": role, "content": text if separator else text.strip()}
