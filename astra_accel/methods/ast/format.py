"""How a conversation becomes the token ids that a model reads.

A format renders; a view of it adds whose eyes it is seen with and how much fits.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from astra_accel.methods.ast.transcript import Reader, Segment, Transcript

logger = logging.getLogger(__name__)

Ids = tuple[int, ...]


def encode_text(tokenizer: Any, text: str) -> Ids:
    """The tokens of plain text: no special token is added, and none that the text spells out is obeyed."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


class Format(ABC):
    """Renders the units of a conversation, oldest first, to the ids before the next turn.

    A unit is what is dropped together when the context is full.
    """

    separator: str

    @abstractmethod
    def units(self, segments: Sequence[Segment], reader: Reader) -> list[Ids]:
        """The ids of each unit."""

    @abstractmethod
    def join(self, units: Sequence[Ids], *, ended: bool = True) -> Ids:
        """The ids of a whole context; where not ``ended``, the last unit is still being said."""


class RawFormat(Format):
    """One running text: the beginning-of-text token if the model has one, then all segments end to end.

    Ends of turns are not part of the text, so a probe that stopped early reads like one that was cut.
    """

    separator = ""

    def __init__(self, tokenizer: Any) -> None:
        self.head = _leading_specials(tokenizer)

    def units(self, segments: Sequence[Segment], reader: Reader) -> list[Ids]:
        """A unit for each segment."""
        # A segment of no token is no unit: one that is left alone would be an empty context.
        return [segment.ids(reader) for segment in segments if segment.ids(reader)] or [()]

    def join(self, units: Sequence[Ids], *, ended: bool = True) -> Ids:  # noqa: ARG002
        """The units end to end; nothing marks the end of one."""
        return sum(units, self.head)


class ChatFormat(Format):
    """Messages of the model's chat template.

    To the tester, the prompt and the responses are the user, its probes the assistant. To the target, the
    probes are the user (the first one follows the prompt in the same message), its responses the assistant.

    The template is rendered once with placeholders, and the text between them encoded. A conversation is then
    put together from those pieces and from the sampled ids, so a longer conversation begins with the ids of the
    shorter one, and no turn is tokenised again. The newline that many templates write after the end of a turn
    belongs to the pieces.

    Raises:
        ValueError: there is no chat template, it does not take the messages, or it does not render turn by turn.
    """

    separator = "\n"

    def __init__(self, tokenizer: Any, instruction: str | None = None) -> None:
        pieces = _template_pieces(tokenizer, instruction)
        self.head, self.to_assistant, self.to_user, self.tail = (
            tuple(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces
        )
        self.between = encode_text(tokenizer, self.separator)

    def units(self, segments: Sequence[Segment], reader: Reader) -> list[Ids]:
        """A unit for each exchange of a user and an assistant message, and one for the last user message."""
        messages = [segment.ids(reader) for segment in segments]
        if reader == "target" and len(messages) > 1:
            messages[:2] = [messages[0] + self.between + messages[1]]
        pairs = zip(messages[0:-1:2], messages[1:-1:2], strict=True)
        exchanges = [user + self.to_assistant + assistant + self.to_user for user, assistant in pairs]
        return [*exchanges, messages[-1]]

    def join(self, units: Sequence[Ids], *, ended: bool = True) -> Ids:
        """The exchanges, then the header of the assistant's next message where the last one has ended."""
        return sum(units, self.head) + (self.tail if ended else ())


class View:
    """A conversation as one of the models reads it, never longer than fits.

    Args:
        format: renders it.
        reader: whose ids and whose perspective.
        limit: tokens of context and new text together.
    """

    def __init__(self, format: Format, reader: Reader, limit: int) -> None:
        self.format = format
        self.reader = reader
        self.limit = limit
        self._said_dropping = False

    def own_turn(self, transcript: Transcript, num_new: int) -> Ids:
        """The ids before the reader's own next turn of up to ``num_new`` tokens.

        Whole units drop from the beginning until it fits.

        Raises:
            ValueError: not even the newest unit fits.
        """
        return self._fit(transcript, num_new, ended=True)

    def other_turn(self, transcript: Transcript, num_new: int) -> Ids:
        """The ids before the other side's next turn, as the reader sees it being said."""
        return self._fit(transcript + _NOTHING_YET, num_new, ended=False)

    def _fit(self, transcript: Transcript, num_new: int, ended: bool) -> Ids:
        units = self.format.units(transcript.segments, self.reader)
        for dropped in range(len(units)):
            ids = self.format.join(units[dropped:], ended=ended)
            if len(ids) + num_new <= self.limit:
                if dropped and not self._said_dropping:
                    self._said_dropping = True
                    logger.info(
                        "The %s's context of %d tokens is full: the oldest turns of long conversations are dropped.",
                        self.reader,
                        self.limit,
                    )
                return ids
        raise ValueError(
            f"the {self.reader}'s context holds {self.limit} tokens, but the newest part of the conversation takes "
            f"{len(ids)} and {num_new} are to follow: {str(transcript)[-80:]!r}"
        )


_NOTHING_YET = Segment("probe", "", (), ())


def _leading_specials(tokenizer: Any) -> Ids:
    """What the tokenizer writes before any text (a beginning-of-text token, or nothing)."""
    ids = tuple(tokenizer("a").input_ids)
    content = tuple(tokenizer("a", add_special_tokens=False).input_ids)
    for start in range(len(ids)):
        if ids[start : start + len(content)] == content:
            return ids[:start]
    return ()


def _template_pieces(tokenizer: Any, instruction: str | None) -> tuple[str, str, str, str]:
    """The text before the first message, from user to assistant, from assistant to user, and at the end."""
    if tokenizer.chat_template is None:
        raise ValueError(f"format 'chat' needs a chat template, and the tokenizer of {_name(tokenizer)} has none")
    marks = [f"@@{index}@@" for index in range(5)]
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    messages = [
        {"role": "user" if index % 2 == 0 else "assistant", "content": mark} for index, mark in enumerate(marks)
    ]
    try:
        long = _render(tokenizer, system + messages)
        short = _render(tokenizer, system + messages[:1])
    except Exception as error:
        raise ValueError(f"the chat template of {_name(tokenizer)} does not take these messages: {error}") from error
    pieces = []
    rest = long
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            raise ValueError(f"the chat template of {_name(tokenizer)} leaves out a message")
        pieces.append(piece)
    head, to_assistant, to_user, again_assistant, again_user = pieces
    if (to_assistant, to_user) != (again_assistant, again_user) or short != head + marks[0] + rest:
        raise ValueError(f"the chat template of {_name(tokenizer)} changes earlier turns as a conversation grows")
    if instruction is not None and instruction.strip() not in head:
        raise ValueError(f"the chat template of {_name(tokenizer)} leaves out the system message")
    return head, to_assistant, to_user, rest


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _name(tokenizer: Any) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
