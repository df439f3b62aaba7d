"""A conversation as text and as token ids, so that nothing is tokenised twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from astra_accel.core.outcomes import ANSWERED
from astra_accel.core.prompt import Goal

SegmentRole = Literal["prompt", "probe", "response"]
Reader = Literal["tester", "target"]


@dataclass(frozen=True)
class Segment:
    """What one side said in one turn.

    A probe that the tester ended itself, with a tokenizer that both models share::

        text        " How are you?"
        tester_ids  (1073, 359, 346, 47)     what was sampled, without the end of the turn
        target_ids  (1073, 359, 346, 47)     the same
        end_id      2                        also sampled, so it is scored and trained on with the rest

    Attributes:
        role: whose turn it is; ``prompt`` is the opening.
        text: the text that the turn adds to the conversation, as its writer reads it, without special tokens and
            thinking.
        tester_ids: the content in the tester's vocabulary.
        target_ids: the content in the target's vocabulary. If both share one, the two are the same unless the writer
            sampled something that the other side is not given (a special token, thinking, a space that the other's
            chat template writes).
        end_id: the end-of-turn token that the writer sampled, in its vocabulary; None if the length limit cut the
            turn.
        sampled_logprobs: the log-prob of each of ``sampled_ids`` under its writer when it was sampled, at temperature
            1; None if no model of ours wrote it. Segments that differ only in these are equal.
        num_replaced: how many characters at the end of the preceding text this turn's text replaces: half a character
            is shown as U+FFFD, and the turn that samples the rest of its bytes replaces that.
        thinking: what its writer thought before it answered, if its chat template drops that from earlier turns.
            The other side and the scorer don't get it; its tokens are among ``sampled_ids``.
        outcome: what came of the question, if it is a response: see :mod:`astra_accel.core.outcomes`.
    """

    role: SegmentRole
    text: str
    tester_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    end_id: int | None = None
    sampled_logprobs: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    num_replaced: int = 0
    thinking: str = ""
    outcome: str = ANSWERED

    def __str__(self) -> str:
        return self.text

    def ids(self, reader: Reader) -> tuple[int, ...]:
        """The content in a reader's vocabulary."""
        return self.tester_ids if reader == "tester" else self.target_ids

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The ids that its writer sampled, including the end of the turn."""
        own = self.target_ids if self.role == "response" else self.tester_ids
        return own if self.end_id is None else (*own, self.end_id)


@dataclass(frozen=True)
class Transcript:
    """The segments of a conversation, oldest first. ``transcript + segment`` appends a segment.

    Attributes:
        segments: prompt, probe, response, probe, response, …
        separator: the text between segments in ``str(transcript)``: empty if the conversation is one running text, a
            newline if it is messages.
        goal: what the conversation is to bring out; the tester's instruction may tell it, the target is not told.
    """

    segments: tuple[Segment, ...]
    separator: str = ""
    goal: Goal | None = None

    def __add__(self, segment: Segment) -> Transcript:
        return replace(self, segments=(*self.segments, segment))

    def __str__(self) -> str:
        return joined_text(self.segments, self.separator)


def joined_text(said: Iterable[Segment | str], separator: str) -> str:
    """Join the texts of segments, or plain texts. A prompt without an opening is left out."""
    text, begun = "", False
    for part in said:
        num_replaced = part.num_replaced if isinstance(part, Segment) else 0
        text = text[: len(text) - num_replaced] + separator * begun + str(part)
        begun = begun or not isinstance(part, Segment) or part.role != "prompt" or part.text != ""
    return text


def turns_of(states: Sequence[Transcript]) -> list[int]:
    """The distinct turn numbers that conversations are in, from 1."""
    return sorted({1 + (len(state.segments) - 1) // 2 for state in states})
