"""A conversation as text and as token ids, so that nothing is tokenised twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

SegmentRole = Literal["prompt", "probe", "response"]
Reader = Literal["tester", "target"]


@dataclass(frozen=True)
class Segment:
    """What one side said in one turn.

    A probe of three tokens that the tester ended itself, where both models share a tokenizer::

        text        " How are you?"
        tester_ids  (1073, 359, 346, 47)     what was sampled, without the end of the turn
        target_ids  (1073, 359, 346, 47)     the same
        end_id      2                        sampled too, so it is scored and trained on with the rest

    Attributes:
        role: whose turn it is; ``prompt`` is the opening.
        text: what the turn adds to the text of the conversation, as its writer reads it; special tokens and thinking
            are left out.
        tester_ids: the content in the tester's vocabulary.
        target_ids: the content in the target's vocabulary. Where both share one, the two are the same unless the
            writer sampled what the other side is not given (a special token, thinking, a space that the other's chat
            template writes).
        end_id: the end-of-turn token that the writer sampled, in its vocabulary; None where the length limit
            cut the turn.
        sampled_logprobs: the log-prob of each of ``sampled_ids`` under its writer as it was then, at temperature 1;
            None where no model of ours wrote it. What was said is the same whatever they are.
        num_replaced: how many characters at the end of the text before it this turn's text replaces: half a character
            is shown as U+FFFD, until the turn that samples the rest of its bytes has it.
        thinking: what its writer thought before it answered, where its chat template drops that from earlier turns.
            The other side and the scorer don't get it; its tokens are among ``sampled_ids``.
    """

    role: SegmentRole
    text: str
    tester_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    end_id: int | None = None
    sampled_logprobs: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    num_replaced: int = 0
    thinking: str = ""

    def __str__(self) -> str:
        return self.text

    def ids(self, reader: Reader) -> tuple[int, ...]:
        """The content in the vocabulary of a reader."""
        return self.tester_ids if reader == "tester" else self.target_ids

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """What its writer sampled, the end of the turn included."""
        own = self.target_ids if self.role == "response" else self.tester_ids
        return own if self.end_id is None else (*own, self.end_id)


@dataclass(frozen=True)
class Transcript:
    """The segments of a conversation, oldest first. ``transcript + segment`` is the longer one.

    Attributes:
        segments: prompt, probe, response, probe, response, …
        separator: stands between segments in ``str(transcript)``: nothing where the conversation is one running
            text, a newline where it is messages.
    """

    segments: tuple[Segment, ...]
    separator: str = ""

    def __add__(self, segment: Segment) -> Transcript:
        return Transcript((*self.segments, segment), self.separator)

    def __str__(self) -> str:
        return joined_text(self.segments, self.separator)


def joined_text(said: Iterable[Segment | str], separator: str) -> str:
    """The text of segments, or of plain texts, one after the other."""
    text = ""
    for number, part in enumerate(said):
        num_replaced = part.num_replaced if isinstance(part, Segment) else 0
        text = text[: len(text) - num_replaced] + separator * (number > 0) + str(part)
    return text
