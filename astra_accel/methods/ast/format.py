"""Turns a conversation into the token ids that a model reads; ``views`` decides how much of it fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from astra_accel.methods.ast.chat_template import Answer, ChatTemplate, name_of
from astra_accel.methods.ast.message_slot import MessageSlot, common_end, encode_rendered
from astra_accel.methods.ast.text_codec import Ids, TextCodec, encode_text, num_common
from astra_accel.methods.ast.transcript import Reader, Segment, SegmentRole, joined_text

__all__ = ["ChatFormat", "Format", "RawFormat", "encode_text"]

ANY_TOKEN = -1
"""A placeholder for any token, for turns of which only the length matters."""


class Said(NamedTuple):
    """The text of a turn's ids.

    Attributes:
        text: the text that the other side gets.
        num_replaced: how many characters at the end of the preceding text it replaces; see :class:`Segment`.
        thinking: the thinking, which the other side does not get.
    """

    text: str
    num_replaced: int = 0
    thinking: str = ""


class Unit(NamedTuple):
    """A part of a conversation that is dropped as a whole when the context is full.

    Attributes:
        first: its ids at the beginning of a context.
        later: its ids after another unit.
        end: the ids after it, once it has ended and the reader's own turn begins.
    """

    first: Ids
    later: Ids
    end: Ids = ()


class Format(ABC):
    """Renders the units of a conversation, oldest first, into the ids before the next turn.

    Attributes:
        separator: the text between segments in the text of a conversation.
        codec: converts between the reader's ids and text.
        end_ids: tokens with which the format ends a turn.
    """

    separator: str
    codec: TextCodec
    end_ids: frozenset[int] = frozenset()

    def notes(self) -> list[str]:
        """Remarks for the user on how the reader reads conversations."""
        return []

    @abstractmethod
    def units(self, segments: Sequence[Segment], reader: Reader) -> list[Unit]:
        """Split a conversation into units."""

    @abstractmethod
    def said(self, before: Sequence[Segment], reader: Reader, ids: Ids) -> Said:
        """Decode ids that the reader sampled as the next segment, without the end of the turn."""

    def kept(self, ids: Ids) -> Ids:
        """Return the ids that later contexts hold for ids that the reader sampled."""
        return ids

    @abstractmethod
    def ids(
        self, before: Sequence[Segment], reader: Reader, role: SegmentRole, text: str, sampled: Ids | None = None
    ) -> Ids:
        """Encode a text as the reader reads it as the next segment.

        If the other side has the same tokenizer, the ids that it sampled are used if they, or a part of them, decode
        to the text here. Special tokens are never used: a user of a model can't write them, so a tester must not forge
        turns with them. Nor are tokens that the reader has no embedding for.
        """

    def join(self, units: Sequence[Unit], *, ended: bool = True) -> Ids:
        """Join units into the ids of a whole context; if not ``ended``, the last unit is still being written."""
        ids = units[0].first + sum((unit.later for unit in units[1:]), ())
        return ids + units[-1].end if ended else ids


class RawFormat(Format):
    """One running text: the beginning-of-text token if the model has one, then all segments end to end.

    Ends of turns are not part of the text, so a probe that stopped early reads like one that was cut. A turn's text is
    what it adds to the text so far: a character whose bytes two turns share belongs to the turn that completes it.
    """

    separator = ""

    def __init__(self, tokenizer: Any, num_ids: int | None = None) -> None:
        self.codec = TextCodec(tokenizer, num_ids)
        self.head = _leading_specials(tokenizer)

    def units(self, segments: Sequence[Segment], reader: Reader) -> list[Unit]:
        """A unit for each segment."""
        # An empty segment is not a unit: if it were the only one left, the context would be empty.
        ids = [segment.ids(reader) for segment in segments if segment.ids(reader)] or [()]
        return [Unit(self.head + each, each) for each in ids]

    def said(self, before: Sequence[Segment], reader: Reader, ids: Ids) -> Said:
        """Return what the ids add to the text so far."""
        return Said(*self.codec.added(_joined(before, reader), ids))

    def ids(
        self,
        before: Sequence[Segment],
        reader: Reader,
        role: SegmentRole,  # noqa: ARG002
        text: str,
        sampled: Ids | None = None,
    ) -> Ids:
        """Return the ids that add a text to the text so far."""
        if sampled is not None and self.codec.takes(sampled):
            return sampled
        if not before:
            return self.codec.encode(text)
        return self.codec.encode_after(_joined(before, reader), text, joined_text(before, self.separator))


class ChatFormat(Format):
    """Messages of the model's chat template.

    To the tester, the prompt and the responses are the user, its probes the assistant. To the target, the
    probes are the user (the first one follows the prompt in the same message), its responses the assistant.

    The template is rendered once with placeholders. A conversation is assembled from its pieces, the texts of the
    other side and the sampled ids, so a longer conversation begins with the ids of the shorter one, and no turn is
    tokenised again. The newline that many templates write after the end of a turn belongs to the pieces. How the
    template changes a message (it may trim it, or drop the thinking before the answer) is reproduced here too.

    Everything between two sampled stretches is encoded in its context, so the ids equal those of
    ``apply_chat_template(tokenize=True)`` wherever the tokenizer would have split the sampled text into the same
    tokens. There are two differences: special tokens spelled out in a text are not obeyed, and a probe from another
    tokenizer, whose log-probs are needed, shares no token with its surroundings.

    Args:
        tokenizer: the tokenizer of the reader.
        instruction: a system message.
        hears_ids: whether the other side has the same tokenizer.

    Attributes:
        head, to_assistant, to_user, tail: the ids of the pieces that do not depend on the messages.
        message_ends: the token that the template writes after an assistant's message, if it is a single one.

    Raises:
        ValueError: there is no chat template, it does not take the messages, or it does not render turn by turn.
    """

    separator = "\n"

    def __init__(
        self, tokenizer: Any, instruction: str | None = None, hears_ids: bool = True, num_ids: int | None = None
    ) -> None:
        self.template = ChatTemplate(tokenizer, instruction)
        self.codec = TextCodec(tokenizer, num_ids)
        self.hears_ids = hears_ids
        self._words = self.codec.samples()
        if len(self._words) < 2:
            raise ValueError(f"format 'chat' needs a tokenizer that can write words, and {self._name} can't")
        self._find_pieces()
        self._kept = lru_cache(maxsize=4096)(self._kept_of)
        self._stretches = lru_cache(maxsize=4096)(self._find_stretches)
        self._after_opening = lru_cache(maxsize=4096)(self._slot_after_opening)
        self.message_ends = self._find_end()
        # If a model writes several messages in a turn, the turn continues after the first.
        self.end_ids = frozenset() if self.template.frame else self.message_ends

    def units(self, segments: Sequence[Segment], reader: Reader) -> list[Unit]:
        """Make a unit of each exchange of a user and an assistant message, and one of the last user message."""
        turns = list(segments)
        units = [self._opening(turns[:2])] if reader == "target" and len(turns) > 1 else [self._heard(turns[0], reader)]
        turns = turns[2:] if reader == "target" else turns[1:]
        for answer, user in zip(turns[0::2], turns[1::2], strict=True):
            said = (() if units[-1].end == () else self.to_assistant) + self.kept(answer.ids(reader))
            units[-1] = Unit(units[-1].first + said, units[-1].later + said)
            units.append(self._heard(user, reader))
        return units

    def said(self, before: Sequence[Segment], reader: Reader, ids: Ids) -> Said:  # noqa: ARG002
        """Return the content of an assistant message, without the thinking before it."""
        answer = self._answer(ids)
        if not answer.thinking and not self.template.frame:
            return Said(self.codec.continued(ids).removeprefix(self._answers.lead))
        part = self.codec.part_showing(ids, answer.text)
        text = self.codec.without_special(answer.text) if part is None else self.codec.continued(part)
        return Said(text, thinking=answer.thinking)

    def ids(
        self, before: Sequence[Segment], reader: Reader, role: SegmentRole, text: str, sampled: Ids | None = None
    ) -> Ids:
        """Return the ids of a text in a message."""
        if (role == "probe") == (reader == "tester") and role != "prompt":
            marks = self.template.thinking
            begun = marks is not None and marks.begun and marks.dropped
            return self._answers.encode(f"{marks.end}\n\n{text}" if marks is not None and begun else text)
        if role == "prompt":
            return self._first.encode(self.template.shown_user(text))
        if role == "probe" and len(before) == 1:
            slot, shown = self._after_opening(before[0].text), self._shown_in_opening(before[0].text, text)
            return slot.heard(shown, sampled)
        return self._later.heard(self.template.shown_user(text), sampled)

    def _heard(self, segment: Segment, reader: Reader) -> Unit:
        """A user message: all up to the assistant's is encoded as one text, unless the other side's ids are used."""
        ids = segment.ids(reader)
        if segment.text and (segment.role == "prompt" or not self.hears_ids) and reader == "tester":
            stretches = self._stretches(segment.text)
            if stretches is not None:
                return stretches
        # If older turns were dropped, a message may be at another position than the one that its ids were made for.
        moved = segment.text and self._first.lead != self._later.lead
        first = self._first.heard(self.template.shown_user(segment.text), ids) if moved else ids
        return Unit(self.head + first, self.to_user + ids, self.tail)

    def _find_stretches(self, text: str) -> Unit | None:
        """Encode a user message and the template's pieces on both sides as one text; None if that can't be done."""
        shown = self.template.shown_user(text)
        first = self._first.stretch(shown, len(self.head))
        later = self._later.stretch(shown, len(self.to_user))
        if first is None or later is None or self.to_assistant != self.tail:
            return None
        return Unit(first, later)

    def _opening(self, segments: Sequence[Segment]) -> Unit:
        """The target's first message: the prompt and the first probe."""
        prompt, probe = segments
        has_text = prompt.text or not prompt.target_ids  # else only its length is known
        ids = self._after_opening(prompt.text).before if has_text else self.head + prompt.target_ids + self.between
        ids += probe.target_ids
        return Unit(ids, ids, self.tail)

    def _slot_after_opening(self, prompt: str) -> MessageSlot:
        """The slot of the first probe, which follows the prompt."""
        if self.codec.spells_special(prompt):
            before = self.head + self._first.encode(prompt) + self.between
            return MessageSlot(self.codec, None, self.template.tail, before, self.tail, "")
        begun = self.template.head + self._begun(prompt)
        return MessageSlot.between(self.codec, begun, self.template.tail, self._words)

    def _begun(self, prompt: str) -> str:
        """The target's first message as the template writes it, up to where the probe begins."""
        return self.template.shown_user(self._before_probe(prompt) + "x").removesuffix("x")

    def _before_probe(self, prompt: str) -> str:
        return prompt + self.separator if prompt else ""

    def _shown_in_opening(self, prompt: str, text: str) -> str:
        begun = self._begun(prompt)
        whole = self.template.shown_user(self._before_probe(prompt) + text)
        return whole.removeprefix(begun) if whole.startswith(begun) else text

    def _answer(self, ids: Ids) -> Answer:
        shown = self.codec.continued(ids, skip_special=False)
        return self.template.answer(shown.removeprefix(self._answers.lead))

    def kept(self, ids: Ids) -> Ids:
        """Return the ids of what the template keeps of an assistant message: the sampled ones where they match."""
        return self._kept(ids)

    def _kept_of(self, ids: Ids) -> Ids:
        if ids[:1] == (ANY_TOKEN,):
            return ids
        return self._answers.heard(self._answer(ids).shown, ids, own=True)

    def _find_pieces(self) -> None:
        """Find the ids of the template's pieces, and the slots for messages between them.

        A token at the edge of a piece may also hold a part of the message (a space and a word), so a piece is what its
        ids have in common for different messages. The rest of it is the message's ``lead``.
        """
        texts, words, one = self.template, self._words, self._words[0]
        self._first = MessageSlot.between(self.codec, texts.head, texts.tail, words)
        self.head, self.tail = self._first.before, self._first.after
        later = [MessageSlot.between(self.codec, word + texts.to_user, texts.tail, words) for word in words]
        self._later, self.to_user = later[0], common_end(slot.before for slot in later)
        begun = texts.head + one + texts.to_assistant
        answers = [
            MessageSlot.between(self.codec, texts.head + word + texts.to_assistant, texts.to_user + one, words)
            for word in words
        ]
        self._answers, self.to_assistant = answers[0], common_end(slot.before for slot in answers)
        if texts.to_assistant.startswith(texts.tail):
            # What the template writes next, such as a space, belongs to the answer, which was sampled after the tail.
            self.to_assistant = self.tail
            read = encode_rendered(self.codec, texts.head + one + texts.tail)
            rest = texts.to_assistant.removeprefix(texts.tail)
            self._answers = MessageSlot.between(self.codec, begun, texts.to_user + one, words, before=read, lead=rest)
        self.between = self.codec.encode_continued(self.separator)

    def _find_end(self) -> frozenset[int]:
        """The token that the template writes after an assistant's message; none if that is plain text."""
        after = self.template.to_user.lstrip()
        added = self.codec.tokenizer.added_tokens_decoder
        matching = {index: str(token.content) for index, token in added.items() if after.startswith(token.content)}
        longest = max(matching, key=lambda index: len(matching[index]), default=None)
        return frozenset() if longest is None else frozenset([longest])

    def notes(self) -> list[str]:
        """Report where ids differ from those of the template although nothing was sampled."""
        texts = self.template
        one, two, three = (self._words * 3)[:3]
        prompt = Segment("prompt", one, self._first.encode(one), ())
        probe = Segment("probe", two, self._answers.encode(two), self.ids((prompt,), "target", "probe", two))
        response = Segment("response", three, self._later.encode(three), ())
        readings = {f"{one}{self.separator}{two}": self.units((prompt, probe), "target")}
        if texts.thinking is None or not texts.thinking.begun:  # otherwise it would all be thinking
            exchange = one + texts.to_assistant + two + texts.to_user + three
            readings[exchange] = self.units((prompt, probe, response), "tester")
        notes = [self._difference(units, text) for text, units in readings.items()]
        reason = "A turn begins where the model began to write it, but the template joins it to the text next to it."
        if not any(notes) and not self.hears_ids:
            spaced = f"\n{two} "
            heard = Segment("probe", spaced, (), self.ids((prompt,), "target", "probe", spaced))
            units = self.units((prompt, heard), "target")
            notes = [self._difference(units, one + self.separator + self._shown_in_opening(one, spaced))]
            reason = "So it is where a probe begins or ends with white space, which is kept apart."
        return [f"{note} {reason}" for note in notes if note][:1]

    def _difference(self, units: Sequence[Unit], text: str) -> str:
        ours, usual = self.join(units), encode_rendered(self.codec, self.template.head + text + self.template.tail)
        if ours == usual:
            return ""
        start = num_common(ours, usual)
        read, wanted = (
            self.codec.tokenizer.convert_ids_to_tokens(list(ids[start : start + 4])) for ids in (ours, usual)
        )
        return (
            f"Format chat, {self._name}: token {start} and those after it are {read}, in apply_chat_template {wanted}."
        )

    @property
    def _name(self) -> str:
        return name_of(self.codec.tokenizer)


def _joined(segments: Sequence[Segment], reader: Reader) -> Ids:
    return sum((segment.ids(reader) for segment in segments), ())


def _leading_specials(tokenizer: Any) -> Ids:
    """The ids that the tokenizer puts before any text (a beginning-of-text token, or nothing)."""
    ids = tuple(tokenizer("a").input_ids)
    content = tuple(tokenizer("a", add_special_tokens=False).input_ids)
    for start in range(len(ids)):
        if ids[start : start + len(content)] == content:
            return ids[:start]
    return ()
